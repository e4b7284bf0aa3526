"""What the figures share: intervals, curves, labels and layout."""

import re
from collections.abc import Callable, Sequence
from html import escape, unescape
from textwrap import wrap
from typing import Any, cast

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.report.roles import STYLES, Point

INK, GRID, LINE = "#222222", "#E4E4E4", "#555555"
SHARE_RANGE = (-0.04, 1.06)
MOST_TOLD = 8
DODGE = 0.06
"""Sideways shift between roles, in axis units, that keeps intervals at one place apart."""


def traits(
    role: str, name: str, points: list[Point], axis: str = "y", color: str | None = None
) -> dict[str, Any]:
    """What dots and curves of a role have alike: name, interval, and what hovering tells."""
    error = {
        "array": [max(0.0, p.high - p.value) for p in points],
        "arrayminus": [max(0.0, p.value - p.low) for p in points],
        "color": color or STYLES[role].color,
        "thickness": 1.3,
        "width": 3,
    }
    return {
        "name": name,
        "legendgroup": role,
        f"error_{axis}": error,
        "customdata": [[p.low, p.high, p.n, p.n_entities] for p in points],
        "hovertemplate": f"%{{{axis}:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]"
        "<br>n = %{customdata[2]}, %{customdata[3]} entities",
    }


def add_curves(
    figure: go.Figure,
    curves: dict[str, dict[float, Point]],
    names: dict[str, str],
    scale: Callable[[float], float] = float,
    panel: int = 1,
    faded: bool = False,
) -> None:
    """A line with intervals for each role; behind the gold mean a band from lowest to highest gold.

    Args:
        curves: for each role its points by place.
        scale: from a place to where it stands on the axis.
        panel: row of the subplot, from 1.
        faded: dotted lines and open symbols, for what is shown beside the role's main curve.
    """
    for role, points in curves.items():
        style, places = STYLES[role], sorted(points)
        shown = [points[place] for place in places]
        if role == "gold":
            x = [scale(place) for place in places]
            outline = [*(p.most for p in shown), *(p.least for p in reversed(shown))]
            figure.add_scatter(
                x=[*x, *reversed(x)], y=outline, mode="lines", line={"width": 0},
                fill="toself", fillcolor=style.color, opacity=0.2,
                hoverinfo="skip", showlegend=False, legendgroup=role, row=panel, col=1,
            )  # fmt: skip
        figure.add_scatter(
            x=[scale(place) + dodge(role, curves) for place in places],
            y=[p.value for p in shown], mode="lines+markers",
            line={"color": style.color, "dash": "dot" if faded else style.dash, "width": 2},
            marker={"symbol": opened(style.symbol) if faded else style.symbol, "size": 8},
            showlegend=is_new(figure, names[role]), row=panel, col=1,
            **traits(role, names[role], shown),
        )  # fmt: skip


def opened(symbol: str) -> str:
    """The outline of a symbol."""
    return f"{symbol.removesuffix('-open')}-open"


def add_gap(
    figure: go.Figure,
    lines: tuple[dict[float, Point], dict[float, Point]],
    name: str,
    color: str,
    scale: Callable[[float], float] = float,
    panel: int = 1,
) -> None:
    """The area between two lines, where both have points."""
    upper, lower = lines
    places = sorted(set(upper) & set(lower))
    x = [scale(place) for place in places]
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*(upper[p].value for p in places), *(lower[p].value for p in reversed(places))],
        mode="lines", line={"width": 0}, fill="toself", fillcolor=color, opacity=0.16,
        name=name, legendgroup=name, showlegend=is_new(figure, name),
        hoverinfo="skip", row=panel, col=1,
    )  # fmt: skip


def panels(n: int) -> go.Figure:
    """Panels one above the other, so that they stay legible on a narrow screen."""
    figure = make_subplots(rows=n, cols=1, shared_xaxes=True, vertical_spacing=0.3 / (2 + n))
    return figure.update_xaxes(showticklabels=True)


def list_on_y(figure: go.Figure, title: str, labels: Sequence[str], width: int = 20) -> None:
    """Labels down the y axis, the first one on top."""
    figure.update_yaxes(
        title=title,
        tickvals=list(range(len(labels))),
        ticktext=[label(text, width) for text in labels],
        range=[len(labels) - 0.5, -0.5],
    )


def add_dots(
    figure: go.Figure,
    curves: dict[str, dict[Any, Point]],
    names: dict[str, str],
    places: Sequence[Any],
) -> None:
    """For each role a dot with its interval at each place that it has, places down the y axis."""
    for role, points in curves.items():
        figure.add_scatter(
            x=[p.value for p in points.values()],
            y=[places.index(s) + 2 * dodge(role, curves) for s in points],
            mode="markers",
            marker={"color": STYLES[role].color, "symbol": STYLES[role].symbol, "size": 8},
            **traits(role, names[role], list(points.values()), axis="x"),
        )


def dodge(role: str, curves: dict[str, Any]) -> float:
    """Sideways shift of a role, so that those shown together stand around their place."""
    return DODGE * (list(curves).index(role) - (len(curves) - 1) / 2)


def is_new(figure: go.Figure, name: str) -> bool:
    """Whether the legend does not have the name yet."""
    return not list(figure.select_traces({"name": name}))


def in_words(figure: go.Figure) -> str:
    """The main numbers of a figure for those who do not see it: each role's points, at most eight.

    Of more points the lowest and the highest are told.
    """
    told, traces = [], cast(list[Any], list(figure.data))
    for trace in traces:
        across = trace.error_x.array is not None or figure.layout.yaxis.ticktext
        values = list(trace["x" if across else "y"] or ())
        if trace.name and trace.mode != "lines" and any(v is not None for v in values):
            places = _places(figure, trace, "y" if across else "x")
            named = list(zip(places, values, strict=True))
            if len(named) > MOST_TOLD:
                ranked = sorted(named, key=lambda point: point[1])
                points = " to ".join(f"{at}: {value:.2f}" for at, value in (ranked[0], ranked[-1]))
                points = f"{len(named)} points, from {points}"
            else:
                points = "; ".join(f"{at}: {value:.2f}" for at, value in named)
            told.append(f"{_panel(figure, trace)}{trace.name}: {points}.")
    return " ".join(told) or " ".join(_spoken(a.text) for a in figure.layout.annotations)


def _places(figure: go.Figure, trace: Any, axis: str) -> list[str]:
    """Where each point stands on an axis, in the words of its nearest label."""
    which = f"{axis}axis{(trace[f'{axis}axis'] or axis).removeprefix(axis)}"
    at, words = figure.layout[which].tickvals, figure.layout[which].ticktext
    if words:
        nearest = (min(range(len(at)), key=lambda i: abs(at[i] - x)) for x in trace[axis])
        return [_spoken(words[i]) for i in nearest]
    # Curves stand at whole numbers, from which roles are shifted a little.
    shifted = trace.error_y.array is not None
    return [f"{round(x) if shifted else x:g}" for x in trace[axis]]


def _panel(figure: go.Figure, trace: Any) -> str:
    """The title of the panel that a trace is in; empty where there is one panel alone."""
    axes = list(figure.select_yaxes())
    title = figure.layout[f"yaxis{(trace.yaxis or 'y').removeprefix('y')}"].title.text
    return f"{_spoken(title)}: " if len(axes) > 1 and title else ""


def _spoken(text: str) -> str:
    """A label without its line breaks and entities."""
    return unescape(re.sub(r"</?(?:br|b)>", " ", text)).strip()


def nothing(why: str) -> go.Figure:
    """A figure that says why there is nothing to draw."""
    figure = go.Figure()
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(
        text=label(why, 40), showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper"
    )
    return laid_out(figure, 140)


def laid_out(figure: go.Figure, height: int) -> go.Figure:
    """The figure with the template, fonts and legend of all figures.

    Args:
        height: in pixels; the width is that of the page.
    """
    figure.update_layout(
        template="plotly_white",
        height=height,
        font={"family": "Helvetica, Arial, sans-serif", "size": 13, "color": INK},
        margin={"l": 10, "r": 10, "t": 10, "b": 10},
        legend={
            "orientation": "h",
            "x": 0, "xanchor": "left", "xref": "container",
            "y": 1, "yanchor": "top", "yref": "container",
        },
        dragmode=False,
    )  # fmt: skip
    axis = {"showline": True, "linecolor": LINE, "ticks": "outside", "zeroline": False}
    figure.update_xaxes(**axis, automargin=True, gridcolor=GRID, title_font_size=13)
    figure.update_yaxes(**axis, automargin=True, gridcolor=GRID, title_font_size=13)
    return figure


def label(value: Any, width: int = 20) -> str:
    """Text in lines of a width, escaped for plotly, which reads tags in labels.

    Quotes stay as they are: plotly does not read their entities.
    """
    return "<br>".join(escape(line, quote=False) for line in wrap(str(value), width))
