"""What the Dash app does when something in it is changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dash import ALL, Dash, Input, Output, Patch, State, ctx, html, no_update

from workbench.dashboards import Bench, Dashboards
from workbench.errors import WorkbenchError
from workbench.interventions import save_edit
from workbench.report.browser import parts
from workbench.report.browser.app import graph, to_dash
from workbench.report.browser.figures import (
    column_names,
    feature_figures,
    map_figure,
    next_token_figure,
    recall_figure,
)
from workbench.report.browser.serve import Audits
from workbench.report.browser.view import (
    COLUMNS,
    ROWS,
    View,
    edit_folder,
    found,
    read_bookmarks,
    rows,
    write_bookmarks,
)

GO = {"kind": "go", "feature": ALL, "place": ALL}


@dataclass(frozen=True)
class Room:
    """What callbacks work on."""

    dashboards: Dashboards
    bench: Bench | None
    audits: Audits

    @property
    def columns(self) -> list[str]:
        """The columns of the table."""
        return [c for c in COLUMNS if c in self.dashboards.overview]


def connect(app: Dash, room: Room) -> None:
    """Gives the app its callbacks."""
    _connect_table(app, room)
    _connect_map(app, room)
    _connect_feature(app, room)
    if room.bench is not None:
        _connect_edit(app, room, room.bench)
        _connect_audit(app, room, room.bench)


def _connect_table(app: Dash, room: Room) -> None:
    @app.callback(
        Output("sort", "data"),
        Input({"kind": "sort", "column": ALL}, "n_clicks"),
        State("sort", "data"),
        prevent_initial_call=True,
    )
    def sort(_clicks: list[int], now: dict[str, Any]) -> Any:
        if not ctx.triggered_id or not ctx.triggered[0]["value"]:
            return no_update
        column = ctx.triggered_id["column"]
        return {"column": column, "descending": column != now["column"] or not now["descending"]}

    @app.callback(
        Output("page", "data"),
        Input("previous", "n_clicks"),
        Input("next", "n_clicks"),
        Input("search", "value"),
        Input("minimum", "value"),
        Input("marked-only", "value"),
        Input("sort", "data"),
        State("page", "data"),
        prevent_initial_call=True,
    )
    def turn(*given: Any) -> int:
        step = {"previous": -1, "next": 1}.get(str(ctx.triggered_id))
        return 0 if step is None else max(0, given[-1] + step)

    @app.callback(
        Output("table", "children"),
        Output("where", "children"),
        Output("previous", "disabled"),
        Output("next", "disabled"),
        Input("page", "data"),
        Input("search", "value"),
        Input("minimum", "value"),
        Input("marked-only", "value"),
        Input("sort", "data"),
        Input("marks", "data"),
        Input("shown", "data"),
    )
    def table(page: int, text: Any, minimum: Any, marked: list, by: dict, marks: list, shown: Any):
        view = _view(text, minimum, marked, by, page)
        some, total = rows(room.dashboards, view, marks)
        first = page * ROWS
        told = f"{first + 1} to {first + len(some)} of {total}" if total else "none found"
        return (
            _table(room, some, by, set(marks), shown),
            told,
            page == 0,
            first + len(some) >= total,
        )


def _view(text: Any, minimum: Any, marked: list, by: dict, page: int = 0) -> View:
    return View(
        text=text or "",
        column=by["column"],
        descending=by["descending"],
        minimum=minimum,
        page=page,
        bookmarked=bool(marked),
    )


def _table(room: Room, some: Sequence[int], by: dict, marks: set[int], shown: Any) -> Any:
    names = column_names(room.dashboards.overview)
    columns = [*room.columns, *([by["column"]] if by["column"] not in room.columns else [])]
    heads = [html.Th("feature", scope="col")]
    for column in columns:
        order = (
            ("descending" if by["descending"] else "ascending") if column == by["column"] else ""
        )
        arrow = {"descending": " ↓", "ascending": " ↑"}.get(order, "")
        sort = html.Button(names[column] + arrow, id={"kind": "sort", "column": column}, n_clicks=0)
        heads.append(html.Th(sort, scope="col", className="n", **_aria(sort=order or "none")))
    lines = []
    for i in some:
        star = " ★" if i in marks else ""
        go = to_dash(parts.go_to(int(i)), "table")
        values = room.dashboards.overview.loc[i, columns]
        cells = [html.Td(f"{v:.4g}", className="n") for v in values]
        lines.append(html.Tr([html.Th([go, star], scope="row"), *cells],
                             className="shown" if i == shown else ""))  # fmt: skip
    return html.Table(
        [html.Caption("Sort by the head of a column; open a feature by its number."),
         html.Thead(html.Tr(heads)), html.Tbody(lines)]
    )  # fmt: skip


def _aria(**named: str) -> dict[str, Any]:
    return {f"aria-{name}": value for name, value in named.items()}


def _connect_map(app: Dash, room: Room) -> None:
    @app.callback(
        Output("map", "figure"),
        Input("map-x", "value"),
        Input("map-y", "value"),
        Input("search", "value"),
        Input("minimum", "value"),
        Input("marked-only", "value"),
        Input("sort", "data"),
        State("marks", "data"),
        State("shown", "data"),
        State("picked", "data"),
    )
    def draw(x: str, y: str, text: Any, minimum: Any, marked: list, by: dict, *now: Any) -> Any:
        marks, shown, picked = now
        wanted = found(room.dashboards, _view(text, minimum, marked, by), marks)
        is_search = bool(text or marked) or minimum is not None
        return map_figure(
            room.dashboards.overview, x, y, wanted if is_search else None, shown, picked
        )

    @app.callback(
        Output("map", "figure", allow_duplicate=True),
        Input("shown", "data"),
        Input("picked", "data"),
        State("map-x", "value"),
        State("map-y", "value"),
        prevent_initial_call=True,
    )
    def ring(shown: Any, picked: list[int], x: str, y: str) -> Any:
        if shown is None and not picked:
            return no_update
        patch, overview = Patch(), room.dashboards.overview
        for trace, members in ((2, picked), (3, [] if shown is None else [shown])):
            patch["data"][trace]["x"] = overview.loc[members, x].tolist()
            patch["data"][trace]["y"] = overview.loc[members, y].tolist()
            patch["data"][trace]["customdata"] = members
        return patch

    @app.callback(
        Output("shown", "data"),
        Input(GO, "n_clicks"),
        Input("map", "clickData"),
        Input("number", "value"),
        prevent_initial_call=True,
    )
    def show(_clicks: list, click: Any, number: Any) -> Any:
        clicked = bool(ctx.triggered and ctx.triggered[0]["value"])
        if not clicked and ctx.triggered_id != "number":
            return no_update
        if ctx.triggered_id == "map":
            return click["points"][0]["customdata"]
        opened: Any = ctx.triggered_id
        index = number if opened == "number" else opened["feature"]
        return index if index is not None and 0 <= index < len(room.dashboards) else no_update


def _connect_feature(app: Dash, room: Room) -> None:
    @app.callback(
        Output("title", "children"), Output("feature", "children"), Input("shown", "data")
    )
    def feature(shown: int | None) -> tuple[str, Any]:
        if shown is None:
            return "No feature yet", html.P("Open one from the table or the map.")
        one = room.dashboards.feature(shown)
        told = [parts.summary(one), parts.passages(one), parts.neighbours(one)]
        drawn = [
            part
            for name, figure in feature_figures(one, room.dashboards.card["asked"]).items()
            for part in (html.H3(name), graph(figure))
        ]
        nodes = [to_dash(node, f"feature{i}") for i, node in enumerate(told)]
        return f"Feature {shown}", [*nodes, *drawn]

    @app.callback(
        Output("marks", "data"),
        Output("mark", "children"),
        Input("mark", "n_clicks"),
        Input("shown", "data"),
    )
    def mark(_clicks: Any, shown: int | None) -> tuple[list[int], str]:
        marks = read_bookmarks(room.dashboards.folder)
        if ctx.triggered_id == "mark" and shown is not None:
            marks = sorted({*marks} ^ {shown})
            write_bookmarks(room.dashboards.folder, marks)
        return list(marks), "★ bookmarked" if shown in marks else "☆ bookmark"


def _connect_edit(app: Dash, room: Room, bench: Bench) -> None:
    @app.callback(
        Output("picked", "data"),
        Output("in-edit", "children"),
        Input("pick", "n_clicks"),
        Input({"kind": "drop", "feature": ALL}, "n_clicks"),
        State("shown", "data"),
        State("picked", "data"),
    )
    def pick(_clicks: Any, _drops: list, shown: int | None, picked: list[int]) -> Any:
        clicked = bool(ctx.triggered and ctx.triggered[0]["value"])
        if clicked and ctx.triggered_id == "pick" and shown is not None:
            picked = sorted({*picked, shown})
        elif clicked and isinstance(ctx.triggered_id, dict):
            picked = [i for i in picked if i != ctx.triggered_id["feature"]]
        drops = [
            html.Button(f"{i} ✕", id={"kind": "drop", "feature": i}, n_clicks=0,
                        title=f"take feature {i} out of the edit")
            for i in picked
        ]  # fmt: skip
        return picked, ["Features: ", *drops] if drops else "No feature yet: add one above."

    @app.callback(
        Output("preview", "children"),
        Input("picked", "data"),
        Input("kind", "value"),
        Input("dose", "value"),
        Input("prompt", "value"),
    )
    def preview(picked: list[int], kind: str, dose: Any, prompt: str | None) -> Any:
        try:
            edits = [bench.edit(picked, kind, float(dose))] if picked else []
            seen = bench.preview(edits, prompt or "")
        except WorkbenchError as error:
            return _error(error)
        drawn = [("What comes next", next_token_figure(seen))]
        if not bench.target:
            return _drawn(drawn)
        drawn.append(("Recall of the target, and of what is to stay", recall_figure(seen)))
        said = [to_dash(parts.costs(seen)), to_dash(parts.answers(seen))]
        return [*_drawn(drawn), *said]

    @app.callback(
        Output("saved", "children"),
        Input("save", "n_clicks"),
        State("name", "value"),
        State("picked", "data"),
        State("kind", "value"),
        State("dose", "value"),
        prevent_initial_call=True,
    )
    def save(_clicks: Any, name: str | None, picked: list[int], kind: str, dose: Any) -> Any:
        try:
            folder = edit_folder(room.dashboards.folder, name or "")
            save_edit([bench.edit(picked, kind, float(dose))], folder)
        except WorkbenchError as error:
            return _error(error)
        return f"saved: {folder}; the command line takes it: workbench audit ... --edit {folder}"


def _connect_audit(app: Dash, room: Room, bench: Bench) -> None:
    @app.callback(
        Output("audit", "data"),
        Output("tick", "disabled"),
        Output("verdict", "children"),
        Input("start", "n_clicks"),
        Input("tick", "n_intervals"),
        State("picked", "data"),
        State("kind", "value"),
        State("dose", "value"),
        State("audit", "data"),
        prevent_initial_call=True,
    )
    def audit(_clicks: Any, _ticks: Any, picked: list, kind: str, dose: Any, key: Any) -> Any:
        try:
            if ctx.triggered_id == "start":
                told = [sorted(picked), kind, float(dose), room.dashboards.card["model_sha256"]]
                key = room.audits.start([bench.edit(picked, kind, float(dose))], told)
            if not key:
                return no_update
            ended, word, sentence = room.audits.told(key)
        except WorkbenchError as error:
            return None, True, _error(error)
        return key, ended, _verdict(key, ended, word, sentence)


def _verdict(key: str, ended: bool, word: str, sentence: str) -> Any:
    if not ended:
        return html.P(["The quick audit is running. ", html.Small(sentence)])
    link = html.A("the whole report", href=f"/audits/{key}/report.html", target="_blank")
    shown = [html.Strong(f"Verdict: {word.replace('_', ' ')}. "), sentence, " ", link]
    return html.Div(shown, className="verdict")


def _error(error: Exception) -> Any:
    return html.P(str(error), className="error", role="alert")


def _drawn(figures: Sequence[tuple[str, Any]]) -> list[Any]:
    return [html.Div([html.H3(n), graph(f)]) for n, f in figures]
