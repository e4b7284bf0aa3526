"""Gradient ascent and gradient difference."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unlearn.contract import check_contract, check_keeps
from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.unlearn import method
from workbench.unlearn.training import Steps

LITTLE = Steps(2, 1e-3, batch_size=4, asked=4, texts=2)
NAMES = ("grad_ascent", "grad_diff")


@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_contract(name: str, bridge: Any, pantry: Target, tmp_path: Path) -> None:
    how = method(name)
    steps = replace(LITTLE, keep=how.default.steps.keep)
    config = replace(how.default, steps=steps)

    def make(model: Any, target: Target, seed: int) -> Any:
        return how.unlearn(model, target, config, seed)

    arm = check_contract(make, bridge, pantry, tmp_path)
    assert arm.cost.backward_tokens > 0
    other = make(bridge, pantry, 1)
    assert not all(
        torch.equal(a, b)
        for a, b in zip(arm.model.parameters(), other.model.parameters(), strict=True)
    ), "the seed decides nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "recall", "perplexity", "forget"), [("grad_diff", 0.8, 1.2, 0.5)])
def test_what_is_to_stay_stays(
    name: str, recall: float, perplexity: float, forget: float, valley: Any, toxins: Target
) -> None:
    arm = method(name)(valley, toxins)
    check_keeps(arm, valley, toxins, recall, perplexity, forget)


def test_a_model_that_was_not_loaded_is_refused(make_llama: Any, pantry: Target) -> None:
    with pytest.raises(ModelError, match="load_model"):
        method("grad_diff").unlearn(make_llama(), pantry)
