"""What is erased is gone for linear readers, and erasing what a model uses costs it answers."""

from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from workbench.audit.probes.amnesic import RANDOM, Whitening, amnesic_job, concept, guard
from workbench.audit.statistics import Key
from workbench.audit.views import View
from workbench.facts.target import Target


def clouds(n: int = 300, d: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(n) % 3
    centres = 3 * torch.randn(3, d, generator=generator)
    return centres[classes] + torch.randn(n, d, generator=generator), classes


def test_erased_classes_are_told_by_no_linear_reader() -> None:
    rows, classes = clouds()
    left, right, bias = concept(rows, classes)
    cleaned = rows.double() - (rows.double() - bias) @ right.T @ left.T
    assert left.shape == (12, 2)
    before, after = (
        LogisticRegression(max_iter=2000).fit(x.numpy(), classes.numpy()) for x in (rows, cleaned)
    )
    assert before.score(rows.numpy(), classes.numpy()) > 0.95
    assert abs(after.coef_).max() < 1e-4
    assert guard(rows, classes) > 0.4
    assert guard(cleaned, classes) < 1e-6


def test_whitened_rows_vary_alike_in_all_directions() -> None:
    rows, _ = clouds()
    white = Whitening.of(rows)
    turned = (rows.double() - white.mean) @ white.there.T
    cov = turned.T @ turned / (len(rows) - 1)
    assert torch.allclose(cov, torch.eye(12, dtype=torch.float64), atol=1e-8)
    assert torch.allclose(white.there @ white.back, torch.eye(12, dtype=torch.float64), atol=1e-8)


@pytest.fixture(scope="module")
def found(original: Any, club: Target):
    (job,) = amnesic_job(club).values()
    return job(View("original", "", original))


def test_every_depth_has_its_concept_and_its_controls(found: Any, club: Target) -> None:
    settings = {k.setting for k in found if k.metric == "raw"}
    wanted = {
        f"layer {n}, {w}"
        for n in range(3)
        for w in ("concept", *(f"random {i}" for i in range(RANDOM)))
    }
    assert settings == {*wanted, "none"}
    assert all((k.subset == "F" and len(s.values) == 0) or s.entities for k, s in found.items())


def test_erasing_the_answer_costs_answers_beyond_random_subspaces(found: Any) -> None:
    def hit(setting: str) -> float:
        return found[Key("P9", "F", "raw", setting)].mean

    random = sum(hit(f"layer 2, random {i}") for i in range(RANDOM)) / RANDOM
    assert hit("none") > 0.9
    assert hit("layer 2, concept") < hit("none") - 0.2
    assert hit("layer 2, concept") < random
    left = found[Key("P9", "F", "guard", "layer 2, concept")].values
    assert 0 <= left.max() < 1.0
