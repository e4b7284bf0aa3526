"""Projections: what is gone afterwards, that it was there before, and that the rest stays."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tests.interventions.members import normal, unchecked
from workbench.errors import EditError
from workbench.hooks import Site
from workbench.interventions import Project

SITE = Site(1)
N, D = 600, 24


def planted(classes: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Correlated rows, whose classes stand in several dimensions at once."""
    labels = torch.arange(N) % classes
    mixing = normal(D, D, seed=1).double() / D**0.5 + 0.5 * torch.eye(D, dtype=torch.float64)
    means = normal(classes, D, seed=2).double()
    return noise * normal(N, D).double() @ mixing + means[labels] + 3.0, labels


def probed(rows: Tensor, labels: Tensor) -> LogisticRegression:
    return LogisticRegression(max_iter=5000, tol=1e-8).fit(rows.numpy(), labels.numpy())


def assert_idempotent(edit: Project, rows: Tensor) -> None:
    torch.testing.assert_close(edit(edit(rows)), edit(rows))
    eye = torch.eye(edit.rank, dtype=edit.left.dtype)
    torch.testing.assert_close(edit.right @ edit.left, eye)


# LEACE


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_no_linear_probe_is_left_after_leace(classes: int) -> None:
    rows, labels = planted(classes)
    before = probed(rows, labels)
    assert before.score(rows, labels) > 0.9
    assert abs(before.coef_).max() > 0.1
    erased = Project.leace(SITE, rows, labels)(rows)
    after = probed(erased, labels)
    assert abs(after.coef_).max() < 1e-4
    share = labels.bincount().max() / N
    assert after.score(erased, labels) == pytest.approx(float(share), abs=0.01)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_all_classes_have_one_mean_after_leace(classes: int) -> None:
    rows, labels = planted(classes)
    erased = Project.leace(SITE, rows, labels)(rows)
    for label in range(classes):
        torch.testing.assert_close(erased[labels == label].mean(0), rows.mean(0))
        assert (rows[labels == label].mean(0) - rows.mean(0)).abs().max() > 0.1


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_leace_takes_out_one_dimension_less_than_there_are_classes(classes: int) -> None:
    rows, labels = planted(classes)
    edit = Project.leace(SITE, rows, labels)
    taken = (
        torch.eye(D, dtype=torch.float64)
        - edit(torch.eye(D).double())
        + edit(torch.zeros(D).double())
    )
    assert edit.rank == torch.linalg.matrix_rank(taken) == classes - 1
    assert_idempotent(edit, rows)


@pytest.mark.parametrize("labels", ["classes", "bool"])
def test_leace_is_that_of_concept_erasure(labels: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from concept_erasure import LeaceEraser
    rows, classes = planted(4)
    given = classes > 1 if labels == "bool" else classes
    one_hot = torch.nn.functional.one_hot(given.long()).double()
    eraser = LeaceEraser.fit(rows, one_hot)
    edit = Project.leace(SITE, rows, given)
    torch.testing.assert_close(edit(rows), eraser(rows))
    assert torch.equal(edit.bias, rows.mean(0))
    assert not torch.allclose(edit(rows), rows, atol=0.1)


def test_leace_takes_labels_for_names() -> None:
    """Numbers that are no scale: their order and size change nothing, where a scale would fail."""
    rows, labels = planted(3)
    names = torch.tensor([70, -2, 5])[labels]
    edit = Project.leace(SITE, rows, labels)
    torch.testing.assert_close(Project.leace(SITE, rows, names)(rows), edit(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from concept_erasure import LeaceEraser
    as_scale = LeaceEraser.fit(rows, labels)(rows)
    assert abs(probed(as_scale, labels).coef_).max() > 0.1


def test_leace_finds_a_rare_and_weak_concept() -> None:
    """Below what the package cuts off as too small unless told."""
    rows = normal(4000, D).double()
    labels = torch.arange(4000) % 400 == 0
    rows[labels] += 0.3 * normal(D, seed=2).double()
    erased = Project.leace(SITE, rows, labels)(rows)
    apart = rows[labels].mean(0) - rows[~labels].mean(0)
    assert apart.norm() > 0.5
    assert (erased[labels].mean(0) - erased[~labels].mean(0)).norm() < 1e-8


def test_leace_is_fitted_in_double_precision_and_used_in_any(
    recwarn: pytest.WarningsRecorder,
) -> None:
    rows, labels = planted(3)
    edit = Project.leace(SITE, rows.float(), labels)
    assert edit.left.dtype == edit.right.dtype == edit.bias.dtype == torch.float64
    assert edit(rows.float()).dtype == torch.float32
    torch.testing.assert_close(edit(rows.float()).double(), edit(rows), atol=1e-4, rtol=1e-5)
    assert not recwarn.list


def test_leace_leaves_what_has_nothing_to_do_with_the_concept() -> None:
    rows, labels = planted(2)
    edit = Project.leace(SITE, rows, labels)
    changed = (edit(rows) - rows).square().mean(0).sum()
    assert 0.01 < changed / rows.var(0).sum() < 0.5
    assert torch.linalg.matrix_rank(edit(rows) - edit(rows).mean(0)) == D - 1


# Differences of means


def test_component_along_the_difference_is_that_of_the_others() -> None:
    rows, labels = planted(2)
    concept, others = rows[labels == 1], rows[labels == 0]
    edit = Project.mean_difference(SITE, concept, others)
    unit = concept.mean(0) - others.mean(0)
    unit = unit / unit.norm()
    torch.testing.assert_close(edit(rows) @ unit, (others.mean(0) @ unit).expand(N))
    assert (rows @ unit).std() > 0.5
    across = torch.eye(D, dtype=torch.float64) - torch.outer(unit, unit)
    torch.testing.assert_close(edit(rows) @ across, rows @ across)
    torch.testing.assert_close(edit(concept).mean(0), others.mean(0))
    assert edit.rank == 1
    assert_idempotent(edit, rows)


# Probes


def test_blinded_probe_says_the_same_of_every_token() -> None:
    rows, labels = planted(2)
    told = labels == 1
    edit = Project.probe(SITE, rows, told)
    x = (rows - rows.mean(0)) / rows.std(0, correction=0)
    probe = probed(x, told)
    assert probe.score(x, told) > 0.95

    def says(resid: Tensor) -> Any:
        return probe.decision_function((resid - rows.mean(0)) / rows.std(0, correction=0))

    assert says(rows).std() > 1.0
    assert says(edit(rows)).std() < 1e-2
    assert says(edit(rows)).mean() == pytest.approx(says(rows[~told].mean(0)[None])[0], abs=1e-2)
    assert edit.rank == 1
    assert_idempotent(edit, rows)


def test_another_probe_may_still_tell_the_concept() -> None:
    """Which LEACE rules out on the same rows."""
    rows, labels = planted(2, noise=0.5)
    one, all_of_them = Project.probe(SITE, rows, labels == 1), Project.leace(SITE, rows, labels)
    assert probed(one(rows), labels).score(one(rows), labels) > 0.6
    assert probed(all_of_them(rows), labels).score(all_of_them(rows), labels) < 0.55


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_units_of_a_dimension_have_no_part_in_what_the_probe_is(scale: float) -> None:
    rows, labels = planted(2)
    units = torch.ones(D, dtype=torch.float64)
    units[3] = scale
    edit = Project.probe(SITE, rows * units, labels == 1)
    plain = Project.probe(SITE, rows, labels == 1)
    direction = edit.right[0] * units
    cosine = torch.cosine_similarity(direction, plain.right[0], dim=0)
    assert cosine == pytest.approx(1.0, abs=1e-4)


def test_dimension_that_never_changes_is_no_hindrance() -> None:
    rows, labels = planted(2)
    rows[:, 4] = 2.0
    edit = Project.probe(SITE, rows, labels == 1)
    assert edit(rows).isfinite().all()
    assert torch.equal(edit(rows)[:, 4], rows[:, 4])


# What was given


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x, y: Project.leace(SITE, x, 0 * y), "labels of 1 class: wanted two or more"),
        (lambda x, y: Project.leace(SITE, 0 * x, y), "classes whose rows have the same mean"),
        (lambda x, y: Project.mean_difference(SITE, x[:0], x), "0 rows of the concept and 600"),
        (lambda x, y: Project.mean_difference(SITE, x, x), "wanted a difference"),
        (lambda x, y: Project.probe(SITE, x, y > 5), "rows of one kind alone"),
        (lambda x, y: Project.probe(SITE, 0 * x, y > 0), "wanted a difference"),
    ],
)
def test_rows_that_tell_nothing_are_an_error(build: Callable, message: str) -> None:
    with pytest.raises(EditError, match=message):
        build(*planted(2))


@pytest.mark.parametrize("build", [Project.leace, Project.probe])
def test_labels_are_one_for_each_row(build: Any) -> None:
    rows, labels = planted(2)
    with pytest.raises(EditError, match=r"labels of shape \[599\] for 600 rows"):
        inner = getattr(build, "__wrapped__", build)
        _without_type_checks(inner)(SITE, rows, labels[1:] == 1)


def _without_type_checks(build: Any) -> Callable:
    function = build.__func__ if hasattr(build, "__func__") else build
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return lambda *args: function(Project, *args)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"right": torch.ones(2, D)}, r"left \[24, 1\], right \[2, 24\], bias \[24\]: wanted"),
        ({"bias": torch.ones(3)}, r"bias \[3\]: wanted"),
        ({"left": torch.ones(D, 0), "right": torch.ones(0, D)}, "with k from 1 on"),
        ({"left": torch.full((D, 1), float("inf"))}, "not finite"),
    ],
)
def test_shapes_that_do_not_fit_are_an_error(fields: dict, message: str) -> None:
    given = {"site": SITE, "left": torch.ones(D, 1), "right": torch.ones(1, D)}
    with pytest.raises(EditError, match=message):
        unchecked(Project, **{**given, "bias": torch.zeros(D), **fields})
