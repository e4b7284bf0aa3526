"""The feature browser as a Dash app: what stands where. What happens stands in `callbacks`."""

from pathlib import Path
from typing import Any

from dash import Dash, dcc, html

from workbench.dashboards import EDITS, Bench, Dashboards
from workbench.report.browser import parts
from workbench.report.browser.figures import column_names
from workbench.report.browser.nodes import Node
from workbench.report.browser.serve import Audits
from workbench.report.browser.view import first_column
from workbench.report.html import PLOT_CONFIG

CSS = Path(__file__).with_name("browser.css")
PAGE = """<!DOCTYPE html>
<html lang="en"><head>{{%metas%}}<meta name="viewport" content="width=device-width">
<title>Feature browser</title>{{%favicon%}}{{%css%}}<style>{css} body {{ margin: 0; }}</style>
</head><body class="wbb">{{%app_entry%}}
<footer>{{%config%}}{{%scripts%}}{{%renderer%}}</footer></body></html>
"""
GRAPH: Any = PLOT_CONFIG  # no button that sends a figure anywhere
WIDE = {"width": "14rem"}
MARKS = {i: str(i) for i in range(-3, 4)}


def make_app(dashboards: Dashboards, bench: Bench | None, audits: Audits) -> Dash:
    """The app over one run; `guarded` is to be put on its server before it is served.

    Args:
        bench: the model on which edits are tried; without, the app shows what was gathered.
    """
    from workbench.report.browser.callbacks import Room, connect

    app = Dash(
        "workbench.report.browser",
        assets_folder=str(dashboards.folder / "no-assets"),
        serve_locally=True,
        index_string=PAGE.format(css=CSS.read_text(encoding="utf-8")),
        update_title="",  # pyright: ignore[reportArgumentType]
        suppress_callback_exceptions=True,
    )
    app.layout = _layout(dashboards, bench)
    connect(app, Room(dashboards, bench, audits))
    return app


def to_dash(part: Node | str, place: str = "") -> Any:
    """A tree of `parts` as Dash components; buttons that open a feature get an id for it."""
    if isinstance(part, str):
        return part
    attrs = dict(part.attrs)
    if "class" in attrs:
        attrs["className"] = attrs.pop("class")
    if "tabindex" in attrs:
        attrs["tabIndex"] = attrs.pop("tabindex")
    feature = attrs.pop("data-feature", None)
    if feature is not None:
        attrs |= {"id": {"kind": "go", "feature": int(feature), "place": place}, "n_clicks": 0}
    children = [to_dash(child, f"{place}.{i}") for i, child in enumerate(part.children)]
    return getattr(html, part.tag.capitalize())(children, **attrs)


def _layout(dashboards: Dashboards, bench: Bench | None) -> Any:
    first = first_column(dashboards.overview)
    stores = [
        dcc.Store(id="shown"),
        dcc.Store(id="picked", data=[]),
        dcc.Store(id="marks", data=[]),
        dcc.Store(id="sort", data={"column": first, "descending": True}),
        dcc.Store(id="page", data=0),
        dcc.Store(id="audit"),
        dcc.Interval(id="tick", interval=1000, disabled=True),
    ]
    left = html.Div([_overview(dashboards), _bench(bench)])
    panes = html.Main([left, _one()], className="panes")
    about = html.P(parts.about(dashboards.card))
    header = html.Header([html.H1("Feature browser"), about])
    return html.Div([*stores, header, panes], style={"padding": "1rem"})


def graph(figure: Any) -> Any:
    """A figure in a box of its height, which it keeps when the window changes."""
    style = {"height": f"{figure.layout.height}px"}
    return dcc.Graph(figure=figure, config=GRAPH, style=style)


def _overview(dashboards: Dashboards) -> Any:
    names = column_names(dashboards.overview)
    choices = [{"label": name, "value": column} for column, name in names.items()]

    def axis(id_: str, text: str, value: str) -> Any:
        return html.Label([text, dcc.Dropdown(choices, value, id=id_, clearable=False)],
                          style={"flex": "1 1 14rem"})  # fmt: skip

    search = dcc.Input(
        id="search", type="text", debounce=0.3, placeholder="token text or number", style=WIDE
    )
    minimum = dcc.Input(id="minimum", type="number", debounce=0.3, style={"width": "7rem"})
    bars = [
        html.Label(["Search ", search]),
        html.Label(["Sort column at least ", minimum]),
        dcc.Checklist([{"label": "bookmarked only", "value": "on"}], [], id="marked-only"),
    ]
    pages = [
        html.Button("← previous", id="previous", n_clicks=0),
        html.Span(id="where", **{"aria-live": "polite"}),  # pyright: ignore[reportArgumentType]
        html.Button("next →", id="next", n_clicks=0),
    ]
    axes = [axis("map-x", "Across", "map_x"), axis("map-y", "Up", "map_y")]
    return html.Section(
        [
            html.H2("Features"),
            html.Div(bars, className="bar"),
            html.Div(id="table", className="wide", tabIndex="0", role="region",
                     **{"aria-label": "Table of features"}),  # pyright: ignore[reportArgumentType]
            html.Div(pages, className="bar"),
            html.H3("Map"),
            html.Div(axes, className="bar"),
            dcc.Graph(id="map", config=GRAPH, style={"height": "420px"}),
        ],
        className="pane",
    )  # fmt: skip


def _one() -> Any:
    bar = [
        html.Label(
            [
                "Feature ",
                dcc.Input(id="number", type="number", debounce=0.3, min=0, style={"width": "9rem"}),
            ]
        ),
        html.Button("☆ bookmark", id="mark", n_clicks=0),
        html.Button("add to the edit", id="pick", n_clicks=0),
    ]
    return html.Section(
        [html.H2(id="title"), html.Div(bar, className="bar"), html.Div(id="feature")],
        className="pane",
    )


def _bench(bench: Bench | None) -> Any:
    if bench is None:
        why = "No model was given, so edits cannot be tried: workbench browse RUN --model MODEL."
        return html.Section([html.H2("Try an edit"), html.P(why)], className="pane")
    kinds = [{"label": f"{name}: {told}", "value": name} for name, told in EDITS.items()]
    slider = dcc.Slider(-3, 3, 0.1, value=-1, marks=MARKS, id="dose", updatemode="mouseup")
    has_target = bench.target is not None
    save = [
        html.Label(["Name ", dcc.Input(id="name", type="text", value="edit-1", style=WIDE)]),
        html.Button("Save this edit", id="save", n_clicks=0),
        html.Button("Audit this edit", id="start", n_clicks=0, disabled=not has_target),
    ]
    return html.Section(
        [
            html.H2("Try an edit"),
            html.Div(id="in-edit", className="bar"),
            html.Div(
                [
                    html.Label(
                        ["Edit", dcc.Dropdown(kinds, "clamp", id="kind", clearable=False)],
                        style={"flex": "1 1 20rem"},
                    ),
                    html.Div([html.Label("Dose", htmlFor="dose"), slider],
                             style={"flex": "2 1 24rem"}),
                ],
                className="bar",
            ),
            html.Label(
                [
                    "Prompt ",
                    dcc.Input(id="prompt", type="text", value=bench.prompt, debounce=0.5,
                              style={"width": "min(40rem, 90%)"}),
                ]
            ),
            html.Div(id="preview", **{"aria-live": "polite"}),  # pyright: ignore[reportArgumentType]
            html.Div(save, className="bar"),
            html.Div(id="saved", role="status"),
            html.Div(id="verdict", role="status"),
        ],
        className="pane",
        style={"marginTop": "1rem"},
    )  # fmt: skip
