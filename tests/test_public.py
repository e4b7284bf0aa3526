"""The public names: all there, none hidden by a module, none paid for before it is used."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import workbench

HEAVY = {
    "numpy",
    "pandas",
    "plotly",
    "sae_lens",
    "sklearn",
    "torch",
    "transformer_lens",
    "transformers",
}

IMPORT_ALL = """
import importlib, pkgutil
for module in pkgutil.walk_packages(workbench.__path__, "workbench."):
    importlib.import_module(module.name)
"""
RESOLVE_ALL = """
for name in workbench.PUBLIC:
    getattr(workbench, name)
"""
NO_MODULES = """
hidden = [name for name in workbench.PUBLIC if inspect.ismodule(getattr(workbench, name))]
assert not hidden, f"hidden by modules of the same name: {hidden}"
"""


def run(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", workbench.PUBLIC)
def test_public_name_resolves(name: str) -> None:
    assert not inspect.ismodule(getattr(workbench, name))


@pytest.mark.parametrize(
    "order", [IMPORT_ALL + RESOLVE_ALL, RESOLVE_ALL + IMPORT_ALL], ids=["modules", "names"]
)
def test_public_names_survive_the_import_of_every_module(order: str) -> None:
    done = run("import inspect, workbench" + order + NO_MODULES)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["audit", "locate"])
def test_function_and_package_of_one_name_are_both_reached(name: str) -> None:
    program = f"""
import inspect, sys
import workbench.{name}
from workbench import {name}
from workbench.{name} import {name} as imported
assert inspect.isfunction({name}), {name}
assert workbench.{name} is {name} is imported
assert inspect.ismodule(sys.modules["workbench.{name}"])
"""
    done = run(program)
    assert done.returncode == 0, done.stderr


def test_name_can_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workbench, "audit", len)
    assert workbench.audit is len


def test_editors_see_the_public_names_and_their_modules() -> None:
    tree = ast.parse(Path(workbench.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    imports = [node for node in ast.walk(block) if isinstance(node, ast.ImportFrom)]
    assert {alias.name: node.module for node in imports for alias in node.names} == workbench.PUBLIC


def test_dir_and_all_list_the_public_names() -> None:
    assert set(workbench.PUBLIC) == set(workbench.__all__)
    assert set(workbench.PUBLIC) <= set(dir(workbench))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'workbench' has no attribute 'forget'"):
        _ = workbench.forget


def test_import_is_silent_and_light() -> None:
    silent = run("import workbench", "-W", "error")
    assert (silent.returncode, silent.stdout, silent.stderr) == (0, "", "")
    loaded = set(run("import sys, workbench; print(*sys.modules)").stdout.split())
    assert "workbench" in loaded
    assert not HEAVY & loaded
