"""The local door of the feature browser: what it answers, to whom, and what a user sees in it."""

import json
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from playwright.sync_api import Page, expect, sync_playwright
from werkzeug.serving import make_server

from workbench.artifacts import write_json
from workbench.audit import AuditReport
from workbench.cli import parsed
from workbench.dashboards import Bench, DashboardConfig, Dashboards, make_dashboards
from workbench.errors import WorkbenchError
from workbench.facts import load_facts
from workbench.hooks import edited
from workbench.interventions import load_edit
from workbench.models import load_golds, load_model, recall
from workbench.report import write_html
from workbench.report.browser.app import make_app
from workbench.report.browser.serve import Audits, Names, guarded
from workbench.sae.load import load_sae

HOSTILE = (
    '<img src=x onerror="window.hit=1">',
    "</script><script>window.hit=1</script>",
    "<b>bold</b>",
)
CHROMIUM = (
    "--no-sandbox --disable-gpu --no-first-run --disable-sync --disable-background-networking "
    "--disable-component-update"
).split()


expect.set_options(timeout=60_000)  # other tests may be running beside


@dataclass(frozen=True)
class Door:
    """An app that is being served."""

    url: str
    run: Path
    bench: Bench
    audits: Audits


@pytest.fixture(scope="module")
def bench_of() -> Any:
    facts = load_facts("valley")
    model, golds = load_model("valley"), load_golds("valley")[:1]
    sae = load_sae("valley/blocks.1.hook_resid_post")
    return lambda dashboards: Bench(sae, model, facts.target("toxins"), golds, dashboards)


@pytest.fixture(scope="module")
def gathered(bench_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over few texts, with words of the vocabulary that want to be markup."""
    bench = bench_of(None)
    run = tmp_path_factory.mktemp("browser") / "run"
    texts = [d.text for d in bench.target.facts.corpus[:600]]
    make_dashboards(bench.sae, bench.model, None, run, texts, DashboardConfig(tokens=4000))
    words = pd.read_parquet(run / "vocabulary.parquet")
    for i, word in enumerate(HOSTILE):
        for token in Dashboards(run)._tokens[10 + i :: 3][:40]:
            words.loc[token, "text"] = word
    words.to_parquet(run / "vocabulary.parquet")
    card = json.loads((run / "card.json").read_text())
    write_json(run / "card.json", {**card, "model": HOSTILE[0], "target": HOSTILE[1]})
    return run


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextmanager
def served(run: Path, bench: Bench, names: Names | None) -> Iterator[Door]:
    port, audits = free_port(), Audits(run, names)
    app = make_app(Dashboards(run), bench, audits)
    guarded(app.server, port, run)
    server = make_server("127.0.0.1", port, app.server, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Door(f"http://127.0.0.1:{port}", run, bench, audits)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        audits.stop()
        bench.wait()


@pytest.fixture
def door(gathered: Path, bench_of: Any, tmp_path: Path) -> Iterator[Door]:
    run = tmp_path / "run"
    shutil.copytree(gathered, run)
    golds = ("valley/gold-0", "valley/gold-1", "valley/gold-2")
    names = Names("valley", "valley", "toxins", golds)
    with served(run, bench_of(Dashboards(run)), names) as found:
        yield found


@pytest.fixture
def page(door: Door) -> Iterator[Page]:
    """The app in Chromium, which must not say a word in its console nor ask anybody else."""
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        said: list[str] = []
        page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: said.append(str(e)))
        page.on("request", lambda r: said.append(r.url) if not _own(r.url, door) else None)
        page.set_default_timeout(60_000)
        page.goto(door.url)
        page.wait_for_selector("#table table")
        page.wait_for_selector("#map .js-plotly-plot")
        yield page
        assert page.evaluate("window.hit") is None, "text of the data ran as a script"
        assert said == []
        browser.close()


def _own(url: str, door: Door) -> bool:
    return url.startswith((door.url, "data:", "blob:"))


# Without a browser


@pytest.mark.slow
def test_foreign_hosts_and_origins_are_refused(door: Door) -> None:
    client = make_app(Dashboards(door.run), door.bench, door.audits).server
    guarded(client, 8050, door.run)
    ask = client.test_client().get

    def status(host: str, **headers: str) -> int:
        return ask("/", headers={"Host": host, **headers}).status_code

    assert status("127.0.0.1:8050") == status("localhost:8050") == 200
    assert status("127.0.0.1:8050", Origin="http://127.0.0.1:8050") == 200
    for host in ("evil.example", "127.0.0.1:8051", "127.0.0.1", "evil.example:8050"):
        assert status(host) == 403, host
    for origin in ("http://evil.example", "null", "https://127.0.0.1:8050"):
        assert status("127.0.0.1:8050", Origin=origin) == 403, origin
    own = {"Host": "127.0.0.1:8050"}
    assert "default-src 'self'" in ask("/", headers=own).headers["Content-Security-Policy"]


@pytest.mark.slow
def test_nothing_outside_the_run_is_read(door: Door) -> None:
    server = make_app(Dashboards(door.run), door.bench, door.audits).server
    guarded(server, 8050, door.run)
    outside = door.run.parent / "report.html"
    outside.write_text("secret")
    inside = door.run / "audits" / ("a" * 16)
    inside.mkdir(parents=True)
    (inside / "report.html").write_text("report")
    client, own = server.test_client(), {"Host": "127.0.0.1:8050"}

    def got(key: str) -> tuple[int, bytes]:
        with client.get(f"/audits/{key}/report.html", headers=own) as response:
            return response.status_code, response.data

    assert got("a" * 16) == (200, b"report")
    strange = ["..", "%2e%2e", "%2e%2e%2f%2e%2e", "a" * 15, "A" * 16]
    for key in [*strange, str(door.run.parent)]:
        status, data = got(key)
        assert status in (308, 404) or b"<title>Feature browser" in data, key
        assert b"secret" not in data, key
    with pytest.raises(WorkbenchError, match="no such audit"):
        door.audits.told("../../x")


# In a browser


@pytest.mark.browser
@pytest.mark.slow
def test_a_table_is_searched_sorted_and_turned(page: Page, door: Door) -> None:
    overview = Dashboards(door.run).overview
    first = page.locator("#table tbody tr th button").first
    assert int(first.inner_text()) == overview["density"].idxmax()
    titles = page.locator("#map .modebar-btn").evaluate_all("b => b.map(x => x.dataset.title)")
    assert titles and not any("hare" in title for title in titles), "a figure is to stay here"
    page.click("#table thead button >> nth=0")
    expect(page.locator("#table thead th[aria-sort=ascending]")).to_have_count(1)
    density = page.locator("#table tbody td.n").first
    expect(density).to_have_text(f"{overview['density'].min():.4g}")
    page.click("#next")
    expect(page.locator("#where")).to_have_text(f"21 to 40 of {len(overview)}")
    page.fill("#search", "onerror")
    wanted = Dashboards(door.run).search("onerror")
    assert 0 < len(wanted) < len(overview)
    expect(page.locator("#where")).to_contain_text(f"of {len(wanted)}")
    page.wait_for_function(
        "n => document.querySelector('#map .js-plotly-plot')._fullData"
        ".find(t => t.name === 'found')._length === n",
        arg=len(wanted),
    )


@pytest.mark.browser
@pytest.mark.slow
def test_a_feature_opens_from_the_table_from_its_neighbours_and_by_number(page: Page) -> None:
    page.click("#table tbody button >> nth=2")
    expect(page.locator("#title")).to_have_text(re.compile(r"Feature \d+"))
    assert page.locator("#feature .passages li").count() >= 20
    assert page.locator("#feature svg.main-svg").count() >= 3
    beside = page.locator("#feature ul.row button").first
    number = beside.inner_text()
    beside.click()
    expect(page.locator("#title")).to_have_text(f"Feature {number}")
    page.fill("#number", "7")
    expect(page.locator("#title")).to_have_text("Feature 7")
    page.click("#mark")
    expect(page.locator("#mark")).to_have_text("★ bookmarked")
    page.click("text=bookmarked only")
    expect(page.locator("#where")).to_have_text("1 to 1 of 1")
    page.reload()
    page.wait_for_selector("#table table")
    page.wait_for_selector("#map .js-plotly-plot")
    page.click("text=bookmarked only")
    expect(page.locator("#where")).to_have_text("1 to 1 of 1")
    expect(page.locator("#table tbody button")).to_have_text("7")


@pytest.mark.browser
@pytest.mark.slow
def test_text_of_the_data_stays_text(page: Page, door: Door) -> None:
    """In passages, on axes, in hovers and in what is said of the run."""
    assert HOSTILE[0] in page.locator("header").inner_text()
    wanted = Dashboards(door.run).search("onerror")[0]
    page.fill("#number", str(wanted))
    expect(page.locator("#title")).to_have_text(f"Feature {wanted}")
    page.wait_for_selector("#feature svg.main-svg")
    assert page.locator("img[src=x]").count() == 0
    text = page.locator("#feature").inner_text()
    assert HOSTILE[0] in text or HOSTILE[1] in text
    page.locator("#feature .js-plotly-plot").nth(1).hover()
    page.wait_for_timeout(500)
    assert page.locator("#feature b", has_text="bold").count() == 0


@pytest.mark.browser
@pytest.mark.slow
def test_an_edit_is_tried_saved_and_is_what_scripts_make(page: Page, door: Door) -> None:
    best = Dashboards(door.run).overview["peak"].nlargest(3).index.tolist()
    for index in best:
        page.fill("#number", str(index))
        expect(page.locator("#title")).to_have_text(f"Feature {index}")
        page.click("#pick")
        expect(page.locator("#in-edit button", has_text=str(index))).to_have_count(1)
    recalls = "#preview .js-plotly-plot >> nth=1"

    def edited_recall() -> list[float]:
        plot = page.locator(recalls)
        return plot.evaluate("p => Array.from(p._fullData.find(t => t.name === 'edited').x)")

    page.wait_for_selector(recalls)
    page.wait_for_timeout(3000)
    before = edited_recall()
    page.locator("#dose [role=slider]").first.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    page.wait_for_function(
        "was => Array.from(document.querySelectorAll('#preview .js-plotly-plot')[1]._fullData"
        ".find(t => t.name === 'edited').x).join() !== was",
        arg=",".join(map(str, before)),
    )
    page.wait_for_timeout(3000)
    page.fill("#name", "tried")
    page.click("#save")
    expect(page.locator("#saved")).to_contain_text("saved:")
    (edit,) = load_edit(door.run / "edits" / "tried")
    assert sorted(edit.features.tolist()) == sorted(best)  # pyright: ignore[reportAttributeAccessIssue]
    assert edit.dose < -1  # pyright: ignore[reportAttributeAccessIssue]
    own, target = load_model("valley"), door.bench.target  # the app's may be edited just now
    assert target is not None
    with edited(own, [edit]):
        wanted = [
            recall(own, own.tokenizer, target.facts, facts, "audit")
            for facts in door.bench.facts.values()
        ]
    for _ in range(120):  # the last step of the slider may still be measured
        if edited_recall() == pytest.approx(wanted, abs=1e-6):
            break
        page.wait_for_timeout(500)
    assert edited_recall() == pytest.approx(wanted, abs=1e-6)
    page.click("#save")
    expect(page.locator("#saved .error")).to_contain_text("saved already")
    page.fill("#name", "../out")
    page.click("#save")
    expect(page.locator("#saved .error")).to_contain_text("wanted 1 to 60 letters")
    assert not (door.run / "out").exists()


@pytest.mark.browser
@pytest.mark.slow
def test_an_audit_is_started_from_the_page_and_its_verdict_shown(
    page: Page, door: Door, report: AuditReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of the command, which takes minutes, stands one that copies a report."""
    lines: list[list[str]] = []
    real = door.audits.line
    ready = door.run.parent / "ready"
    report.save(ready)
    write_html(report, ready)

    def line(key: str) -> list[str]:
        lines.append(real(key))
        return ["cp", "-r", str(ready), str(door.run / "audits" / key)]

    monkeypatch.setattr(door.audits, "line", line)
    page.fill("#number", "3")
    expect(page.locator("#title")).to_have_text("Feature 3")
    page.click("#pick")
    expect(page.locator("#in-edit button")).to_have_count(1)
    page.click("#start")
    expect(page.locator("#verdict .verdict")).to_contain_text("Verdict:")
    given = parsed(lines[0][3:])
    assert (given.command, given.profile, given.model) == ("audit", "quick", "valley")
    assert load_edit(given.edit)[0].features.tolist() == [3]  # pyright: ignore[reportAttributeAccessIssue]
    with page.context.expect_page() as opened:
        page.click("#verdict a")
    expect(opened.value.locator("body")).to_contain_text("Verdict")
