"""The wheel holds all that the demo needs: it runs where the repository is out of reach."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of an environment that has the wheel and borrows all else from the running one."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        ROOT,
        cwd=folder,
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    scripts = folder / "venv" / "bin"
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        scripts / "python",
        "install",
        "--no-deps",
        wheel,
        cwd=folder,
    )
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Plain paths: .pth files in them are not followed, so no editable installation is seen.
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(borrowed))
    return scripts


@pytest.mark.slow
def test_workbench_is_imported_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    found = run(
        installed / "python", "-c", "import workbench; print(workbench.__file__)", cwd=tmp_path
    )
    assert Path(found.strip()).is_relative_to(installed.parent)
    assert "usage: workbench" in run(installed / "workbench", "--help", cwd=tmp_path)


@pytest.mark.slow
def test_demo_writes_its_report_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    run(installed / "workbench", "demo", "--out", tmp_path / "demo", cwd=tmp_path)
    assert (tmp_path / "demo" / "report.html").stat().st_size > 0
    assert json.loads((tmp_path / "demo" / "report.json").read_text(encoding="utf-8"))
