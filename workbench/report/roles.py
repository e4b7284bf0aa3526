"""Roles as figures show them: one style each, and the golds taken together."""

from collections.abc import Callable, Hashable, Iterable
from statistics import fmean
from typing import Any, NamedTuple

from workbench.audit.schema import AuditReport, Measurement
from workbench.errors import DataError


class Style(NamedTuple):
    """How one role is drawn in every figure; colours are those of Okabe and Ito (2008)."""

    color: str
    symbol: str
    dash: str
    pattern: str


STYLES = {
    "original": Style("#000000", "circle", "solid", ""),
    "edited": Style("#D55E00", "square", "solid", "/"),
    "hooks_off": Style("#0072B2", "diamond-open", "dash", "x"),
    "gold": Style("#009E73", "triangle-up", "dashdot", "."),
    "control": Style("#CC79A7", "x", "dot", "-"),
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
    hooked = any(r.view == "hooks_on" for r in report.rows if r.endpoint != "objective")
    n_golds = len({r.role for r in report.rows if r.role.startswith("gold-")})
    return {
        "original": "original",
        "edited": "edited, hooks on" if hooked else "edited",
        "hooks_off": "edited, hooks off",
        "gold": f"gold, mean of {n_golds}" if n_golds else "gold",
        "control": "shuffled weights",
    }


def by_role(
    rows: Iterable[Measurement], place: Callable[[Measurement], Any]
) -> dict[str, dict[Any, Point]]:
    """The points of each role by place, roles in the order of `STYLES`; those without rows are out.

    The golds become one point: their mean, and an interval from the lowest lower to the highest
    upper bound of any gold. A row that already holds the golds' mean takes the place of that mean
    and that interval.

    Raises:
        DataError: a role without a style, or two rows of one model at one place.
    """
    groups: dict[str, dict[Hashable, list[Measurement]]] = {role: {} for role in STYLES}
    for row in rows:
        if figure_role(row) not in groups:
            raise DataError(f"no figure knows the role {row.role!r}; wanted one of {list(STYLES)}")
        groups[figure_role(row)].setdefault(place(row), []).append(row)
    return {
        role: {key: _point(members) for key, members in places.items()}
        for role, places in groups.items()
        if places
    }


def _point(rows: list[Measurement]) -> Point:
    roles = [r.role for r in rows]
    if len(set(roles)) < len(roles):
        raise DataError(f"the report has two rows for the same place: {rows[0]} and {rows[-1]}")
    stated = [r for r in rows if r.role == "gold"] or rows
    single = [r for r in rows if r.role != "gold"] or rows
    return Point(
        fmean(r.value for r in stated),
        min(r.low for r in stated),
        max(r.high for r in stated),
        min(r.value for r in single),
        max(r.value for r in single),
        rows[0].n,
        rows[0].n_entities,
    )


def figure_role(row: Measurement) -> str:
    """The key of `STYLES` that a row belongs to."""
    if row.role.startswith("gold"):
        return "gold"
    return "hooks_off" if row.view == "hooks_off" else row.role
