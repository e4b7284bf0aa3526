"""Traces in the weights are whole where nothing was touched, and gone where they were cut."""

from typing import Any

import pytest
import torch

from workbench.audit.probes.traces import jaccard, top_neurons, traces_job
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.facts.target import Target
from workbench.models.copies import copied


def measured(target: Target, original: Any, model: Any) -> Found:
    (job,) = traces_job(target, View("original", "", original)).values()
    return job(View("edited", "deployed", model))


def mean(found: Found, metric: str) -> float:
    return found[Key("P11", "F", metric)].mean


def test_traces_are_whole_in_the_original_and_not_in_another_model(
    original: Any, club: Target, golds: list[Any]
) -> None:
    same, other = (measured(club, original, m) for m in (original, golds[0]))
    assert (mean(same, "jaccard"), mean(same, "moved")) == (1, 0)
    assert mean(same, "cosine") == pytest.approx(1)
    assert mean(other, "jaccard") < 0.5
    assert mean(other, "cosine") < 0.5


def test_cut_value_vectors_are_told(original: Any, club: Target) -> None:
    cut = copied(original)
    with torch.no_grad():
        for block in cut.blocks:
            block.mlp.out.original_component.weight.mul_(-1)
    found = measured(club, original, cut)
    assert mean(found, "cosine") == pytest.approx(-1)
    assert mean(found, "moved") == pytest.approx(2)
    assert mean(found, "jaccard") < 0.2


def test_model_without_a_writing_matrix_gives_nothing(club: Target, original: Any) -> None:
    (job,) = traces_job(club, View("original", "", original)).values()
    assert job(View("edited", "deployed", torch.nn.Linear(2, 2))) == {}


def test_neurons_are_found_by_what_they_write_towards() -> None:
    acts = torch.tensor([[[1.0, 1.0]], [[0.0, 3.0]]])  # two layers of two neurons, one fact
    values = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[9.0, 1.0], [0.0, 0.0]]])
    found = top_neurons(acts, values, torch.tensor([[1.0, 0.0]]), 2)
    assert found.tolist() == [[3, 0]]


def test_overlap_is_worked_out_by_hand() -> None:
    a = torch.tensor([[4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    b = torch.tensor([[3.0, 4.0, 1.0, 2.0], [4.0, 1.0, 3.0, 2.0]])
    assert jaccard(a, b, 2).tolist() == pytest.approx([1.0, 1 / 3])
