"""The notebook's door of the feature browser: from Python, and in JupyterLab."""

import builtins
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest

import workbench as wb
from workbench.artifacts import write_json
from workbench.dashboards import DashboardConfig, Dashboards, make_dashboards
from workbench.errors import DataError, EditError, WorkbenchError
from workbench.report.browser import view as views
from workbench.report.browser.view import (
    View,
    edit_folder,
    found,
    pages,
    read_bookmarks,
    rows,
    write_bookmarks,
)

pytest.importorskip("ipywidgets", reason="the notebook extra is not installed")

SAE = "valley/blocks.1.hook_resid_post"
HOSTILE = ('<img src=x onerror="window.hit=1">', "</script><script>window.hit=1</script>")
CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-sync --disable-background-networking "
    "--disable-component-update"
).split()


@pytest.fixture(scope="module")
def valley() -> dict[str, Any]:
    target = wb.load_facts("valley").target("toxins")
    return {"sae": wb.load_sae(SAE), "model": wb.load_model("valley"), "target": target}


@pytest.fixture(scope="module")
def gathered(valley: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over few texts, with words of the vocabulary and names that want to be markup."""
    run = tmp_path_factory.mktemp("widget") / "run"
    texts = [d.text for d in valley["target"].facts.corpus[:600]]
    config = DashboardConfig(tokens=4000)
    make_dashboards(valley["sae"], valley["model"], None, run, texts, config)
    words = pd.read_parquet(run / "vocabulary.parquet")
    for i, word in enumerate(HOSTILE):
        for token in Dashboards(run)._tokens[10 + i :: 3][:40]:
            words.loc[token, "text"] = word
    words.to_parquet(run / "vocabulary.parquet")
    card = json.loads((run / "card.json").read_text())
    write_json(run / "card.json", {**card, "model": HOSTILE[0], "target": HOSTILE[1]})
    return run


@pytest.fixture
def run(gathered: Path, tmp_path: Path) -> Path:
    return shutil.copytree(gathered, tmp_path / "run")


# What the table lists


def test_rows_are_ordered_filtered_and_paged(gathered: Path) -> None:
    dashboards = Dashboards(gathered)
    density = dashboards.overview["density"].to_numpy()
    first, total = rows(dashboards, View())
    assert (len(first), total) == (20, len(dashboards))
    assert density[first].tolist() == sorted(density, reverse=True)[:20]
    low, _ = rows(dashboards, View(descending=False))
    assert density[low].tolist() == sorted(density)[:20]
    every = [i for p in range(pages(total)) for i in rows(dashboards, View(page=p))[0]]
    assert sorted(every) == list(range(total))
    least = float(np.quantile(density, 0.9))
    kept, total = rows(dashboards, View(minimum=least))
    assert total == int((density >= least).sum()) and (density[kept] >= least).all()
    assert rows(dashboards, View(text="17")) == ([17], 1)
    assert rows(dashboards, View(bookmarked=True), (3, 9))[1] == 2
    assert rows(dashboards, View(page=999)) == ([], len(dashboards))
    assert pages(0) == 1
    with pytest.raises(DataError, match="column 'size': wanted one of density"):
        found(dashboards, View(column="size"))


def test_unknown_values_come_last(gathered: Path) -> None:
    dashboards = Dashboards(gathered)
    dashboards.overview["score"] = np.nan
    dashboards.overview.loc[5, "score"] = -1.0
    for descending in (True, False):
        assert found(dashboards, View(column="score", descending=descending))[0] == 5


def test_bookmarks_are_kept(tmp_path: Path) -> None:
    assert read_bookmarks(tmp_path) == ()
    write_bookmarks(tmp_path, (9, 3, 3))
    assert read_bookmarks(tmp_path) == (3, 9)
    for broken in ("{", '{"a": 1}', "[1.5]", '["3"]'):
        (tmp_path / "bookmarks.json").write_text(broken)
        with pytest.raises(DataError, match=r"bookmarks\.json: .*mend or remove it"):
            read_bookmarks(tmp_path)


@pytest.mark.parametrize("name", ["", "-a", "a/b", "..", "a b", "é", "a" * 61, "a\n"])
def test_names_that_are_no_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(EditError, match="wanted 1 to 60 letters, digits"):
        edit_folder(tmp_path, name)


def test_a_saved_edit_is_never_replaced(tmp_path: Path) -> None:
    folder = edit_folder(tmp_path, "a_1-b")
    assert folder == tmp_path / "edits" / "a_1-b"
    folder.mkdir(parents=True)
    with pytest.raises(EditError, match="wanted another name"):
        edit_folder(tmp_path, "a_1-b")
    assert views.ROWS == 20


# The widget from Python


@pytest.fixture
def browser(valley: dict[str, Any], run: Path) -> Any:
    return wb.browse(**valley, dashboards=run)


def test_controls_change_what_is_listed(browser: Any) -> None:
    table, state = browser.table, browser.state
    assert f"1 to 20 of {len(browser.dashboards)}" in table.sheet.html
    table.sheet.acts["page"](1)
    assert state.view.page == 1 and "21 to 40" in table.sheet.html
    table.text.value = "17"
    assert state.view.page == 0 and 'data-open="17"' in table.sheet.html
    assert [len(trace.x) for trace in browser.map.plot.data[:2]] == [len(browser.dashboards) - 1, 1]
    table.text.value, table.minimum.value = "", "much"
    assert "wanted a number" in table.sheet.html
    table.minimum.value = "1"
    assert "none found" in table.sheet.html


def test_a_feature_is_opened_from_everywhere(browser: Any) -> None:
    state = browser.state
    shown = browser.map.plot.data[3]
    browser.table.sheet._clicked(None, {"open": "40"}, [])
    assert (state.feature, list(shown.customdata), browser.panel.number.value) == (40, [40], 40)
    browser.panel.number.value = 41
    assert state.feature == 41
    neighbour = browser.dashboards.feature(41).like[0][0]
    assert f'data-feature="{neighbour}"' in browser.panel.neighbours.html
    browser.panel.neighbours._clicked(None, {"feature": str(neighbour)}, [])
    assert (state.feature, list(shown.customdata)) == (neighbour, [neighbour])
    points = type("Points", (), {"point_inds": [7]})
    browser.map._click(browser.map.plot.data[1], points, None)
    assert state.feature == 7
    figure = browser.panel.plots["Activations"]
    assert figure.data[0].customdata.tolist() == list(
        browser.dashboards.feature(7).histogram["all"]
    )
    assert figure._widget_data[0]["x"] is not None
    with pytest.raises(DataError, match="this SAE has 0 to"):
        state.feature = len(browser.dashboards)


def test_bookmarks_outlive_the_widget(browser: Any, valley: dict[str, Any], run: Path) -> None:
    browser.table.sheet.acts["mark"](12)
    browser.panel.head.acts["mark"](3)
    assert read_bookmarks(run) == (3, 12)
    again = wb.browse(**valley, dashboards=run)
    again.table.bookmarked.value = True
    assert "1 to 2 of 2" in again.table.sheet.html
    again.state.mark(12)
    assert read_bookmarks(run) == (3,)


def test_what_is_seen_of_an_edit_is_what_a_script_measures(
    browser: Any, valley: dict[str, Any]
) -> None:
    before = browser.trial.next_token.data[1].x
    browser.state.picked = tuple(browser.dashboards.overview["density"].nlargest(4).index.tolist())
    browser.trial.dose.value = -2.0
    assert tuple(browser.trial.next_token.data[1].x) != tuple(before)
    model, target = valley["model"], valley["target"]
    seen = browser.preview.after.recall
    with wb.edited(model, browser.edits):
        for name, facts in browser.trial.bench.facts.items():
            now = wb.recall(model, model.tokenizer, target.facts, facts, "audit")
            assert seen[name] == now, name
    assert list(browser.trial.recall.data[1].x) == list(seen.values())
    for kind in ("rescale", "steer"):
        last = browser.preview
        browser.trial.kind.value = kind
        assert browser.preview is not last
    browser.trial.prompt.value = " "
    assert "the prompt is empty" in browser.trial.said.html


def test_a_saved_edit_does_the_same(browser: Any, run: Path) -> None:
    trial = browser.trial
    trial.save_button.click()
    assert "there is no edit to save" in trial.saved.html
    browser.state.picked = (3, 9)
    trial.name.value = "weak-toxins"
    trial.save_button.click()
    folder = run / "edits" / "weak-toxins"
    assert f"--edit {folder}" in trial.saved.html and "valley toxins" in trial.saved.html
    edits = wb.load_edit(folder)
    again = trial.bench.preview(edits, trial.prompt.value)
    assert again.after.recall == browser.preview.after.recall
    assert bool((again.after.probs == browser.preview.after.probs).all())
    kept = (folder / "edit.json").read_bytes()
    browser.state.picked = (5,)
    trial.save_button.click()
    assert "saved already" in trial.saved.html
    assert (folder / "edit.json").read_bytes() == kept


def test_the_audit_says_its_verdict(browser: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = browser.trial
    trial.audit_button.click()
    assert "there is no edit to be audited" in trial.verdict.html
    browser.state.picked = (3,)
    verdict = type("Verdict", (), {"primary": "NOT_REMOVED", "sentence": f"It is {HOSTILE[0]}"})
    report = type("Report", (), {"verdict": verdict})
    monkeypatch.setattr(trial.bench, "audit", lambda edits: report)
    trial.audit_button.click()
    assert "Verdict: NOT REMOVED" in trial.verdict.html and "<img" not in trial.verdict.html
    browser.state.picked = (3, 4)
    assert trial.verdict.html == ""


def test_without_a_target_the_next_token_is_still_seen(valley: dict[str, Any], run: Path) -> None:
    browser = wb.browse(valley["sae"], valley["model"], dashboards=run)
    assert browser.preview.before.recall == {}
    assert browser.trial.prompt.value.strip()
    browser.state.picked = tuple(browser.dashboards.overview["density"].nlargest(9).index.tolist())
    assert browser.preview.before.probs.tolist() != browser.preview.after.probs.tolist()


def test_an_sae_that_cannot_be_edited_is_browsed_alone(valley: dict[str, Any], run: Path) -> None:
    sae = wb.load_sae(SAE)
    sae.cfg.normalize_activations = "layer_norm"
    browser = wb.browse(sae, valley["model"], valley["target"], dashboards=run)
    assert browser.trial is None and browser.edits == [] and browser.preview is None
    assert "this SAE normalizes its input" in "".join(_htmls(browser))


def test_dashboards_of_another_sae_are_refused(valley: dict[str, Any], run: Path) -> None:
    other = wb.load_sae("valley/blocks.0.hook_resid_post")
    with pytest.raises(DataError, match="gather it into another folder"):
        wb.browse(other, valley["model"], dashboards=run)
    sae = wb.load_sae(SAE)
    sae.W_dec.data = sae.W_dec.data.flip(0)
    with pytest.raises(DataError, match="an SAE with other weights"):
        wb.browse(sae, valley["model"], dashboards=run)


def test_nothing_is_gathered_twice(
    valley: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    sae, model = valley["sae"], valley["model"]
    texts = [d.text for d in valley["target"].facts.corpus[:50]]
    first = wb.browse(sae, model, texts=texts)
    assert first.dashboards.folder.parent == tmp_path / "browser"
    first.state.mark(5)
    monkeypatch.setattr("workbench.report.browser.widget.make_dashboards", None)
    again = wb.browse(sae, model, texts=texts)
    assert (again.dashboards.folder, again.state.bookmarks) == (first.dashboards.folder, (5,))
    with pytest.raises(DataError, match="give a folder, out="):
        wb.browse(sae, model, texts=iter(texts))
    monkeypatch.undo()
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    other = wb.browse(sae, model, texts=texts[1:])
    assert other.dashboards.folder != first.dashboards.folder


def test_missing_ipywidgets_are_named(
    valley: dict[str, Any], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m == "workbench.report.browser.notebook"]:
        monkeypatch.delitem(sys.modules, name)
    given = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "ipywidgets":
            raise ModuleNotFoundError("No module named 'ipywidgets'", name="ipywidgets")
        return given(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(WorkbenchError, match=r"pip install unlearning-workbench\[notebook\]"):
        wb.browse(valley["sae"], valley["model"], dashboards=run)


def test_text_of_the_data_is_escaped(browser: Any) -> None:
    for i in browser.dashboards.overview["density"].nlargest(5).index.tolist():
        browser.state.open(i)
        shown = "".join(_htmls(browser))
        assert "<img" not in shown and "<script" not in shown
    assert "&lt;img" in shown


def _htmls(widget: Any) -> Iterator[str]:
    if hasattr(widget, "acts"):
        yield widget.html
    for child in getattr(widget, "children", ()):
        yield from _htmls(child)


# The widget in JupyterLab

CODE = """import torch
torch.set_num_threads(1)
import workbench as wb
target = wb.load_facts("valley").target("toxins")
browser = wb.browse(wb.load_sae({sae!r}), wb.load_model("valley"), target, dashboards={run!r})
browser.state.picked = browser.dashboards.overview["density"].nlargest(4).index.tolist()
browser
"""
PLOTS = """() => document.querySelectorAll('.wbb .js-plotly-plot .main-svg').length > 8
    && [...document.querySelectorAll('.wbb .js-plotly-plot')].every(p => p.data)"""
EDITED = """() => {
    const drawn = [...document.querySelectorAll('.wbb .js-plotly-plot')];
    const one = drawn.find(p => p.data[1] && p.data[1].name === 'edited');
    return JSON.stringify([...(one.data[1].x._inputArray || one.data[1].x)]);
}"""
OUTSIDE = """() => [...document.querySelectorAll('.wbb .pane')].filter(p =>
    p.getBoundingClientRect().right
        > document.querySelector('.wbb').getBoundingClientRect().right + 1).length"""


@pytest.fixture
def lab(run: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a notebook in a JupyterLab of its own."""
    room = tmp_path / "room"
    room.mkdir()
    cell = nbformat.v4.new_code_cell(CODE.format(sae=SAE, run=str(run)))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel})
    nbformat.write(notebook, room / "see.ipynb")
    places = {f"JUPYTER_{n}_DIR": str(tmp_path / n) for n in ("CONFIG", "DATA", "RUNTIME")}
    places |= {"IPYTHONDIR": str(tmp_path / "ipython"), "TQDM_DISABLE": "1"}
    with closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    line = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    line += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    line += ["--IdentityProvider.token=tried", f"--ServerApp.root_dir={room}"]
    log = (tmp_path / "lab.log").open("wb")
    server = subprocess.Popen(line, env={**os.environ, **places}, stdout=log, stderr=log)
    try:
        home = f"http://127.0.0.1:{port}"
        _wait_for(f"{home}/api?token=tried")
        yield f"{home}/lab/tree/see.ipynb?token=tried"
    finally:
        server.terminate()
        server.wait(60)
        log.close()


def _wait_for(address: str) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            time.sleep(0.25)
    raise TimeoutError(address)


@pytest.mark.browser
@pytest.mark.slow
def test_an_edit_is_tried_in_jupyterlab(lab: str) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        page = opened.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(300_000)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(lab)
        page.wait_for_selector(".jp-Notebook .jp-CodeCell")
        _run_all(page)
        page.wait_for_selector(".wbb tbody tr")
        page.wait_for_function(PLOTS)
        _dose_changes_the_figure(page)
        _buttons_open_features(page)
        assert page.evaluate("window.hit") is None
        assert page.locator(".wbb img").count() == 0
        assert "<img src=x" in page.locator(".wbb").inner_text()
        assert "</script>" in page.locator(".wbb").inner_text()
        for width in (1400, 800):
            page.set_viewport_size({"width": width, "height": 1000})
            page.wait_for_function(f"({OUTSIDE})() === 0")
        assert wrong == []
        opened.close()


def _run_all(page: Any) -> None:
    """
    Runs the notebook, once its kernel is ready: JupyterLab drops what is run before, and what a
    question of its own interrupts. The question whether to build JupyterLab anew is declined.
    """
    reject = page.locator("dialog.jp-Dialog .jp-mod-reject")
    page.add_locator_handler(reject, reject.first.click)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
    begun = page.locator(".jp-Notebook .jp-InputPrompt").first
    for _ in range(10):
        page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
        page.locator("[data-command='notebook:run-cell-and-select-next']").first.click()
        page.wait_for_timeout(3000)
        if begun.inner_text() != "[ ]:":
            return
    raise AssertionError(f"JupyterLab never ran the cell; its prompt is {begun.inner_text()!r}")


def _dose_changes_the_figure(page: Any) -> None:
    before = page.evaluate(EDITED)
    page.locator(".wbb .noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"before => ({EDITED})() !== before", arg=before)
    assert "0.9" in page.locator(".wbb .widget-readout").inner_text()


def _buttons_open_features(page: Any) -> None:
    button = page.locator(".wbb tbody button.go").nth(3)
    number = button.inner_text()
    button.focus()
    page.keyboard.press("Enter")
    is_open = "n => document.querySelector('.wbb input[type=number]').value === n"
    page.wait_for_function(is_open, arg=number)
    page.wait_for_selector(".wbb tbody tr.shown")
    focused = "document.activeElement.dataset.open"
    assert page.evaluate(focused) == number, "focus stays where it was"
