"""Figures of the feature browser: data in, plotly figure out; the same behind all three doors."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.dashboards import Feature, Preview
from workbench.locate.scores import Method
from workbench.report.drawing import label

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#808080"
FAINT = "rgba(128, 128, 128, 0.3)"
METHODS: tuple[str, ...] = get_args(Method)
NAMES = {
    "density": "share of tokens it fires on",
    "peak": "largest activation",
    "mean": "mean activation",
    "rate_forget": "share of tokens, texts that state the target",
    "rate_retain": "share of tokens, other texts",
    "effect_forget": "ablated, forget facts lose (nats)",
    "effect_retain": "ablated, retained facts lose (nats)",
    "map_x": "decoder, first principal component",
    "map_y": "decoder, second principal component",
}
"""What the columns of an overview are called on axes and heads."""
LOGARITHMIC = ("density", "peak", "mean", "rate_forget", "rate_retain")
SHOWN_FACTS = 20


def column_names(overview: pd.DataFrame) -> dict[str, str]:
    """The columns that can be sorted and drawn by, with what they are called."""
    ends = ("_low", "_high")
    return {c: NAMES.get(c, f"score: {c}") for c in overview.columns if not c.endswith(ends)}


def map_figure(
    overview: pd.DataFrame,
    x: str = "map_x",
    y: str = "map_y",
    found: np.ndarray | None = None,
    chosen: int | None = None,
    picked: Sequence[int] = (),
) -> go.Figure:
    """Every feature as a point: others, those found by a search, those in an edit, the one shown.

    On logarithmic axes features that never fire are left out.
    """
    figure = go.Figure()
    every = np.asarray(overview.index)
    is_found = np.ones(len(every), bool) if found is None else np.isin(every, found)
    shown = [] if chosen is None else [chosen]
    for members, name, color, symbol in (
        (every[~is_found], "others", GREY, "circle"),
        (every[is_found], "found", BLUE, "circle"),
        (np.asarray(picked, int), "in the edit", GREEN, "diamond-open"),
        (np.asarray(shown, int), "shown", ORANGE, "circle-open"),
    ):
        ring = symbol.endswith("open")
        marker = {"color": color, "symbol": symbol, "size": 14 if ring else 6}
        _points(figure, overview.loc[list(members)], (x, y), name, marker)
    for axis, column in (("x", x), ("y", y)):
        kind = "log" if column in LOGARITHMIC else "linear"
        figure.update_layout({f"{axis}axis": {"title": NAMES.get(column, column), "type": kind}})
    figure = _laid_out(figure, 420)
    return figure.update_layout(dragmode="pan", clickmode="event", hovermode="closest")


def _points(
    figure: go.Figure, rows: pd.DataFrame, axes: tuple[str, str], name: str, marker: dict[str, Any]
) -> None:
    x, y = axes
    figure.add_scattergl(
        x=rows[x].to_numpy(np.float32), y=rows[y].to_numpy(np.float32), mode="markers",
        customdata=np.asarray(rows.index, np.int32), name=name,
        opacity=0.4 if name == "others" else 0.9,
        marker={**marker, "line": {"width": 3 if marker["size"] > 6 else 0}},
        hovertemplate="feature %{customdata}<br>%{x:.3g}, %{y:.3g}<extra></extra>",
    )  # fmt: skip


def histogram_figure(feature: Feature) -> go.Figure:
    """How often the feature fires how much, as a share of its activations of each kind of text."""
    figure = go.Figure()
    colors = {"forget": ORANGE, "retain": BLUE, "all": BLUE}
    names = {"forget": "texts that state the target", "retain": "other texts", "all": "all texts"}
    for kind, counts in feature.histogram.items():
        values = np.array(counts, float)
        middle = (np.arange(len(values)) + 0.5) / len(values) * feature.numbers["peak"]
        figure.add_bar(
            x=middle, y=values / max(1.0, values.sum()), name=names[kind], customdata=values,
            marker={"color": colors[kind], "pattern": {"shape": "/" if kind == "forget" else ""}},
            opacity=0.65, hovertemplate="%{x:.3g}: %{customdata} tokens<extra></extra>",
        )  # fmt: skip
    figure.update_layout(barmode="overlay", bargap=0)
    figure.update_xaxes(title="activation")
    figure.update_yaxes(title="share of its activations", tickformat=".0%")
    return _laid_out(figure, 260)


def logits_figure(feature: Feature) -> go.Figure:
    """The tokens that the decoder row alone makes more and less likely."""
    figure = go.Figure()
    both = ((feature.up, "more likely", BLUE), (feature.down[::-1], "less likely", ORANGE))
    place = 0
    texts: list[str] = []
    for pairs, name, color in both:
        figure.add_bar(
            x=[value for _, value in pairs], y=list(range(place, place + len(pairs))),
            orientation="h", name=name, marker_color=color,
            hovertemplate="%{x:.3g}<extra></extra>",
        )  # fmt: skip
        place += len(pairs)
        texts += [_token(token) for token, _ in pairs]
    figure.update_yaxes(tickvals=list(range(place)), ticktext=texts, range=[place - 0.5, -0.5])
    figure.update_xaxes(title="logit less the mean of the vocabulary")
    return _laid_out(figure, 90 + 20 * max(4, place))


def scores_figure(feature: Feature) -> go.Figure:
    """Every score of `locate`, as a share of the dictionary's largest, where the caller gave it."""
    names = [m for m in METHODS if m in feature.numbers]
    values = [feature.numbers[m] for m in names]
    low = [feature.numbers[f"{m}_low"] for m in names]
    high = [feature.numbers[f"{m}_high"] for m in names]
    rows, data, layout = max(1, len(names)), [], {}
    for i, name in enumerate(names):
        end = "" if i == 0 else str(i + 1)
        known, top = np.isfinite(low[i]), 1 - i / rows
        ends = {
            "array": [max(0.0, high[i] - values[i]) if known else 0],
            "arrayminus": [max(0.0, values[i] - low[i]) if known else 0],
        }
        data.append({
            "type": "scatter", "mode": "markers", "x": [values[i]], "y": [name], "error_x": ends,
            "xaxis": f"x{end}", "yaxis": f"y{end}", "marker": {"color": BLUE, "size": 9},
            "showlegend": False,
            "hovertemplate": f"{values[i]:.4g} [{low[i]:.4g}, {high[i]:.4g}]<extra>{name}</extra>",
        })  # fmt: skip
        layout[f"yaxis{end}"] = {"domain": [top - 0.6 / rows, top], "anchor": f"x{end}"}
        layout[f"xaxis{end}"] = {"anchor": f"y{end}"}
    return _laid_out(go.Figure(data, layout), 60 + 62 * rows)


def facts_figure(feature: Feature, asked: Sequence[Sequence[str]]) -> go.Figure:
    """The forget facts in whose questions the feature fires most (folds T and S)."""
    best = sorted(feature.facts, key=lambda pair: -pair[1])[:SHOWN_FACTS]
    figure = go.Figure()
    figure.add_bar(
        x=[value for _, value in best], y=list(range(len(best))), orientation="h",
        marker_color=ORANGE, hovertemplate="%{x:.3g}<extra></extra>", showlegend=False,
    )  # fmt: skip
    texts = [label(" · ".join(asked[i]), 60) for i, _ in best]
    figure.update_yaxes(
        tickvals=list(range(len(best))), ticktext=texts, range=[max(1, len(best)) - 0.5, -0.5]
    )
    more = len(feature.facts) - len(best)
    rest = f"<br>({more} more facts fire it less)" if more else ""
    figure.update_xaxes(title=f"largest activation in the question{rest}")
    return _laid_out(figure, 90 + 20 * max(3, len(best)))


def positions_figure(feature: Feature) -> go.Figure:
    """Share of passages in which the feature fires, by position."""
    figure = go.Figure()
    figure.add_bar(
        x=list(range(len(feature.positions))), y=list(feature.positions), marker_color=BLUE,
        showlegend=False, hovertemplate="position %{x}: %{y:.2%}<extra></extra>",
    )  # fmt: skip
    last = len(feature.positions) - 1
    figure.update_xaxes(title=f"position in the passage, BOS = 0 ({last}: and later)")
    figure.update_yaxes(title="fires in", tickformat=".1%", rangemode="tozero")
    return _laid_out(figure, 240)


def next_token_figure(preview: Preview) -> go.Figure:
    """What comes next: the original, the edited model, and one that never knew."""
    figure = go.Figure()
    who = [("original", preview.before, BLUE, ""), ("edited", preview.after, ORANGE, "/")]
    who += [("gold", preview.gold, GREEN, "x")] if preview.gold else []
    places = list(range(len(preview.tokens)))
    for name, said, color, shape in who:
        figure.add_bar(
            x=[float(said.probs[i]) for i, _ in preview.tokens], y=places, orientation="h",
            name=name, marker={"color": color, "pattern": {"shape": shape}},
            hovertemplate="%{x:.3f}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_yaxes(
        tickvals=places, ticktext=[_token(text) for _, text in preview.tokens],
        range=[len(places) - 0.5, -0.5],
    )  # fmt: skip
    figure.update_xaxes(title="probability of the next token", range=[0, 1])
    return _laid_out(figure, 90 + 34 * len(places)).update_layout(barmode="group")


def recall_figure(preview: Preview) -> go.Figure:
    """Recall of the forget facts of S and of all kinds of facts that are to stay."""
    figure = go.Figure()
    who = [("original", preview.before, BLUE, "circle")]
    who += [("edited", preview.after, ORANGE, "square")]
    who += [("gold", preview.gold, GREEN, "triangle-up")] if preview.gold else []
    kinds = {"S": "forget facts (S)", "R_va": "same relations (R_va)"}
    for name, said, color, symbol in who:
        figure.add_scatter(
            x=list(said.recall.values()), y=[kinds.get(k, f"neighbours {k}") for k in said.recall],
            mode="markers", name=name, marker={"color": color, "symbol": symbol, "size": 11},
            hovertemplate="%{x:.3f}<extra>" + name + "</extra>",
        )  # fmt: skip
    figure.update_xaxes(title="recall, audit-only templates", range=[-0.03, 1.03])
    figure.update_yaxes(autorange="reversed")
    return _laid_out(figure, 100 + 28 * len(preview.before.recall))


def feature_figures(feature: Feature, asked: Sequence[Sequence[str]]) -> dict[str, go.Figure]:
    """All figures of one feature, by the name of what they show."""
    found = {
        "Activations": histogram_figure(feature),
        "Tokens it writes": logits_figure(feature),
        "By position": positions_figure(feature),
    }
    if any(m in feature.numbers for m in METHODS):
        found["Scores, 95 % intervals"] = scores_figure(feature)
    if feature.facts:
        found["Forget facts it fires on"] = facts_figure(feature, asked)
    return found


def _token(text: str) -> str:
    shown = text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·", 1)
    return label(shown[:40] or "∅", 60) or "·"


def _laid_out(figure: go.Figure, height: int) -> go.Figure:
    """On a transparent ground, so that a page decides whether it is light or dark."""
    figure.update_layout(
        template="none", height=height, paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)", margin={"l": 10, "r": 10, "t": 30, "b": 10},
        font={"family": "Helvetica, Arial, sans-serif", "size": 13, "color": GREY},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": GREY, "activecolor": BLUE},
    )  # fmt: skip
    figure.update_xaxes(automargin=True, gridcolor=FAINT, zerolinecolor=FAINT)
    return figure.update_yaxes(automargin=True, gridcolor=FAINT, zerolinecolor=FAINT)
