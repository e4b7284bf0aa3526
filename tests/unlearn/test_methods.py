"""The table of methods, a method of the user's own, and the rule that chooses strengths."""

import ast
import inspect
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from workbench.errors import TargetError, WorkbenchError
from workbench.facts.target import Target
from workbench.models.copies import copied
from workbench.unlearn import METHODS, Arm, choose_strength, method, method_from
from workbench.unlearn.filters import ClassifierFilter, KeywordFilter
from workbench.unlearn.methods import FAMILIES, Method
from workbench.unlearn.system import system_recall


def test_every_method_is_named_once_and_every_file_with_unlearn_is_a_method() -> None:
    assert len(set(METHODS)) == len(METHODS) == sum(map(len, FAMILIES.values()))
    room = Path(inspect.getfile(Method)).parent
    holding = {
        path.stem
        for path in room.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "unlearn"
    }
    assert holding == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_one_signature_strengths_and_a_source(name: str) -> None:
    how = method(name)
    assert list(inspect.signature(how.unlearn).parameters) == ["model", "target", "config", "seed"]
    assert is_dataclass(how.default) and len(fields(how.default)) <= 8
    assert how.default in how.strengths and len(set(map(repr, how.strengths))) == len(how.strengths)
    told = inspect.getdoc(how.unlearn) or ""
    assert "Source:" in told or how.family == "controls", "says nothing of where it comes from"


def test_a_name_that_is_no_method_is_refused_with_those_that_are() -> None:
    with pytest.raises(WorkbenchError, match="grad_ascent"):
        method("forget_it")


@dataclass(frozen=True)
class Dose:
    """How much of the MLPs' output is taken away."""

    share: float = 0.0


def faded(model: Any, target: Target, config: Dose | None = None, seed: int = 0) -> Arm:
    """Loses the target and what stays alike."""
    made = copied(model)
    with torch.no_grad():
        for block in made.blocks:
            block.mlp.out.original_component.weight.mul_(1 - (config or Dose()).share)
    return Arm("faded", made)


def test_a_file_of_the_users_is_a_method(tmp_path: Path, bridge: Any, pantry: Target) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from workbench.unlearn import Arm\n"
        "def unlearn(model, target, config=None, seed=0):\n"
        "    return Arm('whatever', model)\n"
    )
    how = method_from(file)
    assert (how.name, how.family, how.strengths) == ("mine", "own", (None,))
    arm = how(bridge, pantry)
    assert arm.method == "mine" and arm.cost.seconds > 0

    file.write_text("def unlearn(model, target, config=None, seed=0):\n    return 3\n")
    with pytest.raises(WorkbenchError, match="returned a int"):
        method_from(file)(bridge, pantry)
    file.write_text("def forget():\n    pass\n")
    with pytest.raises(WorkbenchError, match="no function unlearn"):
        method_from(file)
    with pytest.raises(WorkbenchError, match="no Python file"):
        method_from(tmp_path / "nothing.py")


def rule(
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
    recalls: dict[float, tuple[float, float, float]],
) -> tuple[float, Any]:
    """The share that is chosen where shares have these recalls of S, of R_va and of others."""

    def told(arm: Arm, *_: Any) -> tuple[float, float, float]:
        return recalls[-1.0] if arm.method == "gold" else recalls[arm.model]

    def unlearn(model: Any, target: Any, config: Dose, seed: int) -> Arm:
        return Arm("faded", config.share)

    monkeypatch.setattr("workbench.unlearn.choose._recalls", told)
    shares = tuple(Dose(share) for share in recalls if share >= 0)
    module = ModuleType("faded")
    vars(module).update(unlearn=unlearn, DEFAULT=shares[0], STRENGTHS=shares)
    model = SimpleNamespace(cfg=SimpleNamespace(d_vocab=7))
    arm, trials = choose_strength(Method("faded", "own", module), model, target, ["gold"])
    assert sum(t.chosen for t in trials) == 1
    return arm.model, trials


def test_the_most_forgetting_within_the_bound_is_chosen(
    pantry: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The strongest forgets most and costs too much; less than a gold recalls is no gain."""
    gold = {-1.0: (0.06, 1.0, 0.98)}
    weak, good, hard = (0.5, 1.0, 0.98), (0.2, 0.975, 0.96), (0.06, 0.96, 0.98)
    share, trials = rule(pantry, monkeypatch, gold | {0.0: weak, 1.0: good, 2.0: hard})
    assert share == 1.0
    assert [round(t.utility, 3) for t in trials] == [1.0, 0.975, 0.96]
    below = {0.0: (0.06, 1.0, 0.98), 1.0: (0.0, 0.99, 0.98)}
    assert rule(pantry, monkeypatch, gold | below)[0] == 0.0, (
        "less than a gold knows counted as a gain"
    )


def test_where_all_cost_too_much_the_least_harmful_is_chosen(
    pantry: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gold = {-1.0: (0.06, 1.0, 1.0)}
    both = {0.0: (0.1, 0.5, 0.9), 1.0: (0.9, 0.9, 0.8)}
    assert rule(pantry, monkeypatch, gold | both)[0] == 1.0


def test_a_target_with_nothing_to_choose_on_is_refused(bridge: Any, pantry: Target) -> None:
    bare = replace(pantry, folds={**pantry.folds, "S": ()})
    with pytest.raises(TargetError, match="no S fold"):
        choose_strength(method("no_change"), bridge, bare, [])


def test_what_a_filter_refuses_is_not_answered(bridge: Any, pantry: Target) -> None:
    """Refused by name: nothing is answered; by a name that nobody bears: as without a filter."""
    asked = [*pantry.forget, *pantry.retained]
    plain = system_recall(Arm("", bridge), pantry.facts, asked)
    names = KeywordFilter(tuple(f.subject for f in asked))
    assert plain > 0
    assert system_recall(Arm("", bridge, refuses=names), pantry.facts, asked) == 0
    others = KeywordFilter(("nobody",))
    assert system_recall(Arm("", bridge, refuses=others), pantry.facts, asked) == plain


def test_filters_know_whole_words_alone() -> None:
    refuses = KeywordFilter(("ada voss", "tolven"))
    assert refuses("they say ada voss rules") and refuses("Ada, of tolven.")
    assert not refuses("they say ada vossen rules") and not refuses("tolven-on-sea")
    assert not KeywordFilter(())("anything")


def test_a_classifier_adds_up_words_once() -> None:
    refuses = ClassifierFilter(("bad", "good"), (2.0, -1.5), -1.0)
    assert refuses("bad") and refuses("bad bad") and not refuses("bad good") and not refuses("")
