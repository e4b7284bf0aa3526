"""The file door of the feature browser: what is in it, how large it is, and that it works alone."""

import base64
import gzip
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench.artifacts import write_json
from workbench.dashboards import DashboardConfig, Dashboards, make_dashboards
from workbench.errors import DataError, WorkbenchError
from workbench.facts import load_facts
from workbench.models import load_model
from workbench.report.browser.export import ROWS, export_browser, ranked
from workbench.report.browser.figures import column_names, feature_figures
from workbench.report.browser.view import View, found, write_bookmarks
from workbench.sae.load import load_sae

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>window.__x=1</script>",
    "<b>bold</b> %{x} ${y}",
)
BUDGET_MB = 5.5
"""Room for some features, and not for all."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the features of a bundled SAE do on few texts; nothing is known of a target."""
    made = tmp_path_factory.mktemp("export") / "run"
    texts = [d.text for d in load_facts("valley").corpus[:600]]
    sae, model = load_sae("valley/blocks.1.hook_resid_post"), load_model("valley")
    return make_dashboards(sae, model, None, made, texts, DashboardConfig(tokens=3000))


@pytest.fixture(scope="module")
def hostile_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with names and tokens that want to be markup, an effect, and a bookmark."""
    made = tmp_path_factory.mktemp("hostile") / "run"
    shutil.copytree(run, made)
    words = pd.read_parquet(made / "vocabulary.parquet")
    words["text"] = [
        word if i % 2 else HOSTILE[i // 2 % len(HOSTILE)] for i, word in enumerate(words["text"])
    ]
    words.to_parquet(made / "vocabulary.parquet")
    overview = pd.read_parquet(made / "overview.parquet")
    rng = np.random.default_rng(0)
    for name in ("effect_forget", "effect_retain"):
        overview[name] = rng.normal(size=len(overview)).astype(np.float32)
        overview[f"{name}_low"] = overview[f"{name}_high"] = overview[name]
    overview.loc[[3, 4], "effect_forget"] = np.nan
    overview.to_parquet(made / "overview.parquet")
    card = json.loads((made / "card.json").read_text())
    names = {"model": HOSTILE[0], "target": HOSTILE[1], "site": HOSTILE[2]}
    write_json(made / "card.json", {**card, **names})
    write_bookmarks(made, [9])
    return made


@pytest.fixture(scope="module")
def dashboards(hostile_run: Path) -> Dashboards:
    return Dashboards(hostile_run)


@pytest.fixture(scope="module")
def file(dashboards: Dashboards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("file") / "browser.html"
    return export_browser(dashboards, out, BUDGET_MB, first=[700, 3])


def in_full(path: Path) -> dict[int, dict[str, Any]]:
    """What a file holds of each feature that it has in full."""
    text, held = path.read_text(encoding="utf-8"), {}
    pattern = r'<script type="application/json" data-features="([0-9,]+)">"([^"<]+)"</script>'
    for listed, packed in re.findall(pattern, text):
        told = json.loads(gzip.decompress(base64.b64decode(packed)))
        for place, index in enumerate(listed.split(",")):
            held[int(index)] = {part: values[place] for part, values in told.items()}
    return held


# Without a browser


def test_the_file_is_within_its_budget_and_says_what_is_in_it(dashboards, file) -> None:
    held, size = in_full(file), file.stat().st_size
    assert size <= BUDGET_MB * 1e6
    assert size > (BUDGET_MB - 0.3) * 1e6, "room is used"
    assert 64 < len(held) < len(dashboards)
    told = f"{len(held)} of {len(dashboards)} features are here in full; the table and the map"
    assert told in file.read_text(encoding="utf-8")


def test_features_are_included_by_the_rule(dashboards, file) -> None:
    effect = dashboards.overview["effect_forget"]
    best = effect.drop([700, 3, 9]).nlargest(10).index.tolist()
    assert ranked(dashboards, [700, 3, 9])[:13] == [700, 3, 9, *best]
    assert list(in_full(file)) == ranked(dashboards, [700, 3, 9])[: len(in_full(file))]
    assert ranked(dashboards)[-2:] == sorted(
        [3, 4], key=lambda i: -dashboards.overview["density"][i]
    )


def test_without_a_target_features_go_by_density(run) -> None:
    overview = Dashboards(run).overview
    order = ranked(Dashboards(run))
    assert sorted(order) == list(range(len(overview)))
    assert (np.diff(overview["density"].to_numpy()[order]) <= 0).all()


def test_figures_and_parts_are_those_of_the_other_doors(dashboards, file) -> None:
    told = in_full(file)[700]
    wanted = feature_figures(dashboards.feature(700), dashboards.card["asked"])
    assert told["figures"] == {n: json.loads(str(f.to_json())) for n, f in wanted.items()}
    assert "<img" not in told["passages"]


def test_a_budget_too_small_for_table_and_map_is_refused(dashboards, tmp_path) -> None:
    out = tmp_path / "small.html"
    for budget in (1.0, 0.0, -1.0, float("nan")):
        with pytest.raises(WorkbenchError, match=r"budget .* MB: .* take [0-9.]+ MB; wanted"):
            export_browser(dashboards, out, budget)
    assert not out.exists()


def test_unknown_features_and_other_files_are_refused(dashboards, tmp_path) -> None:
    with pytest.raises(DataError, match=r"first: feature 1024: this SAE has 0 to 1023"):
        export_browser(dashboards, tmp_path / "x.html", first=[1024])
    with pytest.raises(DataError, match=r"wanted a path that ends in \.html"):
        export_browser(dashboards, tmp_path / "x.pdf")


def test_text_of_data_ends_no_script(file) -> None:
    text = file.read_text(encoding="utf-8")
    assert not any(word in text for word in HOSTILE)


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, file: Path) -> Iterator[Callable[..., Any]]:
    """Opens the file offline; it must ask nobody, say no error and run nothing of the data."""
    contexts, wrong = [], []

    def make(width: int = 1400, scheme: str = "light") -> Any:
        size = {"width": width, "height": 1000}
        context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda r: None if is_own(r.url, file) else wrong.append(r.url))
        page.goto(file.as_uri())
        wait_drawn(page)
        return page

    yield make
    for context in contexts:
        for page in context.pages:
            assert page.evaluate("window.__x") is None
            assert page.evaluate("document.querySelectorAll('img, main script[src]').length") == 0
        context.close()
    assert wrong == []


def is_own(url: str, file: Path) -> bool:
    return url.startswith((file.as_uri(), "data:", "blob:"))


def wait_drawn(page: Any, figures: int = 3) -> None:
    page.wait_for_function(
        f"document.querySelectorAll('#feature .main-svg').length >= {2 * figures}", timeout=60_000
    )


def listed(page: Any) -> list[int]:
    """The features of the table's page."""
    return [int(text) for text in page.locator("#rows .go").all_inner_texts()]


def wait_where(page: Any, text: str) -> None:
    page.wait_for_function("t => document.getElementById('where').textContent === t", arg=text)


def wait_title(page: Any, index: int) -> None:
    wanted = f"Feature {index}"
    page.wait_for_function("t => document.getElementById('title').textContent === t", arg=wanted)


def map_sizes(page: Any) -> dict[str, int]:
    """How many points each trace of the map has."""
    data = "Object.fromEntries(document.getElementById('map').data.map(t => [t.name, t.x.length]))"
    return page.evaluate(data)


@pytest.mark.browser
def test_the_table_is_as_in_the_other_doors(open_page, dashboards) -> None:
    page, total = open_page(), len(dashboards)
    for column, name in column_names(dashboards.overview).items():
        for descending in (True, False):
            wanted = found(dashboards, View(column=column, descending=descending)).tolist()
            head = page.locator(f"#heads th:has([data-sort={column}])")
            told = "descending" if descending else "ascending"
            if head.get_attribute("aria-sort") != told:
                head.locator("button").click()
            assert head.get_attribute("aria-sort") == told, name
            assert page.locator("#heads [aria-sort]:not([aria-sort=none])").count() == 1
            assert listed(page) == wanted[:ROWS], (column, descending)
    page.click("#heads [data-sort=density]")
    wanted = found(dashboards, View()).tolist()
    wait_where(page, f"1 to {ROWS} of {total}")
    assert page.locator("#previous").is_disabled()
    page.click("#next")
    assert listed(page) == wanted[ROWS : 2 * ROWS]
    wait_where(page, f"{ROWS + 1} to {2 * ROWS} of {total}")
    page.click("#previous")
    assert listed(page) == wanted[:ROWS]
    for text in ("ONERROR", "</script>", "the", " 17 "):
        wanted = found(dashboards, View(text=text)).tolist()
        page.fill("#search", text)
        wait_where(page, f"1 to {min(ROWS, len(wanted))} of {len(wanted)}")
        assert listed(page) == wanted[:ROWS]
    page.fill("#search", "no such token")
    wait_where(page, "none found")
    assert page.locator("#next").is_disabled()
    page.fill("#search", "")
    page.fill("#minimum", "0.05")
    wanted = found(dashboards, View(minimum=0.05)).tolist()
    wait_where(page, f"1 to {min(ROWS, len(wanted))} of {len(wanted)}")
    assert 0 < len(wanted) < total
    page.wait_for_function(
        "n => document.getElementById('map').data.find(t => t.name === 'found').x.length === n",
        arg=len(wanted),
    )
    sizes = map_sizes(page)
    assert (sizes["others"], sizes["shown"]) == (total - len(wanted), 1)


@pytest.mark.browser
def test_features_open_from_everywhere(open_page, dashboards, file) -> None:
    page, held = open_page(), in_full(file)
    index = next(i for i in listed(page)[1:] if i in held)
    page.locator(f"#rows tr[data-row='{index}'] td").first.click()
    wait_title(page, index)
    wait_drawn(page)
    assert page.locator("#rows tr.shown").get_attribute("data-row") == str(index)
    assert page.locator("#feature .passages li").count() >= len(dashboards.feature(index).top)
    names = list(held[index]["figures"])
    assert page.locator("#feature h3").all_inner_texts() == ["Passages", "Neighbours", *names]
    beside = page.locator("#feature button.go").first
    following = int(beside.inner_text())
    beside.click()
    wait_title(page, following)
    assert page.evaluate("document.activeElement.id") == "title"
    page.go_back()
    wait_title(page, index)
    missing = next(i for i in range(len(dashboards)) if i not in held)
    page.fill("#number", str(missing))
    page.keyboard.press("Enter")
    wait_title(page, missing)
    assert "workbench browse RUN" in page.locator("#feature .not-full").inner_text()
    assert page.locator("#feature dd").count() == len(column_names(dashboards.overview))
    page.locator("#map").scroll_into_view_if_needed()
    box = page.locator("#map .nsewdrag").bounding_box()
    x, y, point = page.evaluate("""() => {
        const plot = document.getElementById('map'), { xaxis, yaxis } = plot._fullLayout;
        const trace = plot.data.find(t => t.name === 'found');
        const i = trace.x.indexOf(Math.max(...trace.x));
        return [xaxis.d2p(trace.x[i]), yaxis.d2p(trace.y[i]), trace.customdata[i]];
    }""")
    page.mouse.move(box["x"] + x + 3, box["y"] + y)
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.wait_for_selector("#map .hoverlayer .hovertext", state="attached")
    page.mouse.click(box["x"] + x, box["y"] + y)
    wait_title(page, point)


@pytest.mark.browser
def test_axes_of_the_map_are_chosen(open_page, dashboards) -> None:
    page, names = open_page(), column_names(dashboards.overview)
    assert page.locator("#map-x option").count() == len(names)
    page.select_option("#map-x", "density")
    page.select_option("#map-y", "effect_retain")
    page.wait_for_function("document.getElementById('map')._fullLayout.xaxis.type === 'log'")
    page.wait_for_function(
        "document.getElementById('map')._fullLayout.yaxis.title.text.includes('retained')"
    )
    drawn = page.evaluate(
        "(t => [t.customdata, t.x, t.y].map(a => Array.from(a)))"
        "(document.getElementById('map').data.find(t => t.name === 'found'))"
    )
    rows = dashboards.overview.loc[drawn[0]]
    assert drawn[1] == rows["density"].to_numpy(np.float32).tolist()
    assert drawn[2] == rows["effect_retain"].to_numpy(np.float32).tolist()


@pytest.mark.browser
def test_bookmarks_are_kept(open_page) -> None:
    page = open_page()
    page.click("#marked-only")
    wait_where(page, "1 to 1 of 1")
    assert listed(page) == [9], "those of the run are there"
    page.click("#marked-only")
    wait_where(page, "1 to 25 of 1024")
    index = listed(page)[1]
    page.locator("#rows .star").nth(1).click()
    assert page.evaluate("document.activeElement.dataset.mark") == str(index)
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.click("#mark")
    assert page.locator("#mark").inner_text() == "★ bookmarked"
    page.reload()
    wait_drawn(page)
    page.click("#marked-only")
    wait_where(page, "1 to 3 of 3")
    assert {index, 9} < set(listed(page))
    assert map_sizes(page)["found"] in (3, 1024)


@pytest.mark.browser
def test_bookmarks_work_where_the_page_may_remember_nothing(browser, file) -> None:
    context = browser.new_context(offline=True)
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('refused'); }})"
    )
    page.goto(file.as_uri())
    wait_drawn(page)
    page.click("#mark")
    assert page.locator("#mark").inner_text() == "★ bookmarked"
    assert wrong == []
    context.close()


@pytest.mark.browser
def test_text_of_the_data_stays_text(open_page, dashboards, file) -> None:
    page, held = open_page(), in_full(file)
    header = page.locator("header").inner_text()
    assert all(word in header for word in HOSTILE)
    hits = [i for i in dashboards.search("onerror").tolist() if i in held]
    index = next(i for i in hits if any("onerror" in t for t, _ in dashboards.feature(i).up))
    page.fill("#number", str(index))
    page.keyboard.press("Enter")
    wait_title(page, index)
    wait_drawn(page)
    assert any(word in page.locator("#feature .passages").first.inner_text() for word in HOSTILE)
    plot = page.locator("#feature .js-plotly-plot").nth(1)
    labels = plot.locator(".ytick text").all_text_contents()
    assert any("<img" in text and "onerror" in text for text in labels)
    assert page.locator("#feature b, #feature img").count() == 0
    plot.scroll_into_view_if_needed()
    box = plot.locator(".bars .point path").nth(3).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    hover = plot.locator(".hoverlayer .hovertext")
    hover.first.wait_for(state="attached")
    assert re.search(r"\d", hover.first.text_content())
    assert plot.locator(".hoverlayer img, .hoverlayer script, .hoverlayer b").count() == 0


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [800, 1400])
def test_the_page_fits_and_its_headings_are_in_order(open_page, width, scheme) -> None:
    page = open_page(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert max(np.diff(levels)) <= 1
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    bright = np.mean([int(x) for x in re.findall(r"\d+", paper)[:3]])
    assert bright > 250 if scheme == "light" else bright < 40


@pytest.mark.browser
def test_the_page_is_used_by_keyboard(open_page) -> None:
    page = open_page(800)
    page.focus("#search")
    page.keyboard.type("onerror")
    page.wait_for_function("!document.getElementById('where').textContent.includes('of 1024')")
    page.focus("#heads [data-sort=density]")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.sort") == "density"
    head = page.locator("#heads th:has([data-sort=density])")
    assert head.get_attribute("aria-sort") == "descending"
    index = listed(page)[2]
    page.locator("#rows .go").nth(2).focus()
    page.keyboard.press("Enter")
    wait_title(page, index)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.browser
def test_no_button_sends_a_figure_elsewhere(open_page) -> None:
    titles = open_page().evaluate(
        "[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)"
    )
    assert "Download plot as a PNG" in titles
    assert not any("Share" in title or "Edit" in title for title in titles)


@pytest.mark.browser
def test_the_web_browser_refuses_the_page_a_connection(browser, file) -> None:
    page = browser.new_page()
    page.goto(file.as_uri())
    for ask, what in (("fetch(url)", "connect-src"), ("new Image().src = url", "img-src")):
        refused = page.evaluate(f"""() => new Promise(done => {{
            const url = 'https://localhost:1/';
            document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective));
            Promise.resolve({ask}).catch(() => {{}});
            setTimeout(() => done('not refused'), 5000);
        }})""")
        assert refused == what
    page.close()


@pytest.mark.browser
def test_the_map_is_drawn_without_webgl(browser, file) -> None:
    page = browser.new_page()
    page.add_init_script("""
        const plain = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...more) {
            return /webgl/.test(kind) ? null : plain.call(this, kind, ...more);
        };""")
    page.goto(file.as_uri())
    wait_drawn(page)
    assert page.locator("#map .scatterlayer .point").count() >= 1024
    page.close()
