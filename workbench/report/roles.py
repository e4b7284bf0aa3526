"""Roles as figures show them: one style each, rotations pooled, and the golds taken together."""

from collections.abc import Callable, Iterable
from math import sqrt
from statistics import fmean
from typing import Any, NamedTuple

from workbench.audit.schema import AuditReport, Endpoint, Measurement
from workbench.errors import DataError


class Style(NamedTuple):
    """How one role is drawn in every figure; colours are those of Okabe and Ito (2008)."""

    color: str
    symbol: str
    dash: str


STYLES = {
    "original": Style("#000000", "circle", "solid"),
    "edited": Style("#D55E00", "square", "solid"),
    "text": Style("#E69F00", "star", "longdash"),
    "weights": Style("#0072B2", "diamond-open", "dash"),
    "gold": Style("#009E73", "triangle-up", "dashdot"),
    "random": Style("#CC79A7", "x", "dot"),
    "permuted": Style("#56B4E9", "cross", "longdashdot"),
}


class Point(NamedTuple):
    """One role at one place: mean, 95 % interval, and lowest and highest single model."""

    value: float
    low: float
    high: float
    least: float
    most: float
    n: int
    n_entities: int


def role_names(report: AuditReport) -> dict[str, str]:
    """What legends call each role."""
    models = report.card.models
    n_golds = len(models.gold)
    return {
        "original": "original",
        "edited": "edited, hooks on" if models.edited.hooks else "edited",
        "text": "edited, behind its filter",
        "weights": "edited, hooks off",
        "gold": f"gold, mean of {n_golds}" if n_golds > 1 else "gold",
        "random": "random weights",
        "permuted": "shuffled weights",
    }


def figure_role(row: Measurement) -> str:
    """The key of `STYLES` that a row belongs to."""
    if row.role.startswith("gold"):
        return "gold"
    return row.view if row.view in ("text", "weights") else row.role


def by_role(
    rows: Iterable[Measurement], place: Callable[[Measurement], Any]
) -> dict[str, dict[Any, Point]]:
    """The points of each role by place, roles in the order of `STYLES`; those without rows are out.

    The rotations of the folds become one point, weighted by their questions. They score different
    entities, so that the two sides of their intervals add in squares. The golds become one point
    too: their mean, and an interval from the lowest lower to the highest upper bound of any gold.

    Raises:
        DataError: a role without a style, or two rows of one model in one rotation at one place.
    """
    groups: dict[str, dict[Any, dict[str, list[Measurement]]]] = {role: {} for role in STYLES}
    for row in rows:
        if figure_role(row) not in groups:
            raise DataError(f"no figure knows the role {row.role!r}; wanted one of {list(STYLES)}")
        models = groups[figure_role(row)].setdefault(place(row), {})
        models.setdefault(row.role, []).append(row)
    return {
        role: {at: _together([_pooled(r) for r in models.values()]) for at, models in seen.items()}
        for role, seen in groups.items()
        if seen
    }


def _pooled(rows: list[Measurement]) -> Point:
    """One model's rotations as one point."""
    if len({r.fold for r in rows}) < len(rows):
        raise DataError(f"the report has two rows for the same place: {rows[0]} and {rows[-1]}")
    n = sum(r.n for r in rows)
    value = sum(r.n * r.value for r in rows) / n
    below = sqrt(sum((r.n / n * (r.value - r.low)) ** 2 for r in rows))
    above = sqrt(sum((r.n / n * (r.high - r.value)) ** 2 for r in rows))
    entities = sum(r.n_entities for r in rows)
    return Point(value, value - below, value + above, value, value, n, entities)


def _together(models: list[Point]) -> Point:
    return Point(
        fmean(p.value for p in models),
        min(p.low for p in models),
        max(p.high for p in models),
        min(p.value for p in models),
        max(p.value for p in models),
        models[0].n,
        models[0].n_entities,
    )


def standing(report: AuditReport, endpoint: Endpoint) -> str:
    """What became of an endpoint, in a word or two; one that is not usable decides nothing."""
    if not endpoint.valid:
        return "not valid"
    failed = sorted({g.id for g in report.gates if not g.passed and endpoint.id in g.drops})
    if failed:
        return f"dropped by {', '.join(failed)}"
    if endpoint.anti:
        return "below guessing"
    if endpoint.recovered:
        return "recovered"
    return "equivalent" if endpoint.equivalent else "neither"


def usable(report: AuditReport, endpoint: Endpoint) -> bool:
    """Whether an endpoint is valid and no failed gate drops it."""
    return not standing(report, endpoint).startswith(("not valid", "dropped"))


def gold_rhos(endpoint: Endpoint) -> list[float]:
    """Each gold's own rho, held against the mean of the other golds; empty with fewer than two."""
    golds = endpoint.m.G_each
    if len(golds) < 2:
        return []
    others = [(sum(golds) - gold) / (len(golds) - 1) for gold in golds]
    pairs = zip(golds, others, strict=True)
    return [(g - o) / (endpoint.m.O - o) for g, o in pairs if o < endpoint.m.O]
