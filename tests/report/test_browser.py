"""The page in a real browser: it draws, fits a narrow screen, and runs nothing of others."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from workbench.report import write_html

CHROMIUM = Path("/usr/bin/chromium")
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
WIDE = """() => [...document.querySelectorAll('.js-plotly-plot')].every(plot =>
    Math.abs(plot._fullLayout.width - plot.clientWidth) < 2)"""
ATTACK = "</script><img src=x onerror=alert(1)><script>alert(1)</script>"
FIGURES = 13
DRAWN = f"() => document.querySelectorAll('.js-plotly-plot .main-svg').length >= {2 * FIGURES}"

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=OPTIONS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def hostile(make_report, doses, tmp_path_factory) -> Path:
    """A report whose names, reasons and settings try to run a script."""
    report = make_report(hooks=True)
    names = {"layer 1, last": f"layer 1, {ATTACK}", "lr 0.001": ATTACK, "gap": ATTACK}
    rows = tuple(replace(r, setting=names.get(r.setting, r.setting)) for r in report.rows)
    families = tuple(
        replace(f, setting=names.get(f.setting, f.setting), why_dropped=ATTACK)
        for f in report.families
    )
    hurt = replace(
        report, rows=rows, families=families,
        card=replace(report.card, target=replace(report.card.target, id=ATTACK)),
        verdict=replace(report.verdict, sentence=ATTACK, reasons=(ATTACK,), flags=(ATTACK,)),
        endpoints=(*report.endpoints[:-1], replace(report.endpoints[-1], id=ATTACK, name=ATTACK)),
    )  # fmt: skip
    doses = [{**row, "sites": ATTACK} for row in doses]
    return write_html(hurt, tmp_path_factory.mktemp("page"), doses)


@pytest.mark.parametrize("width", [390, 800, 1400])
def test_page_draws_fits_and_runs_nothing_of_others(browser, hostile, width) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    said, asked, dialogs = [], [], []
    page.on("console", lambda message: said.append((message.type, message.text)))
    page.on("pageerror", lambda error: said.append(("error", str(error))))
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(hostile.as_uri())
    page.wait_for_function(DRAWN, timeout=60_000)
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    page.wait_for_function(WIDE, timeout=60_000)
    assert [s for s in said if s[0] in ("error", "warning")] == []
    assert dialogs == []
    assert asked == [hostile.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelectorAll('main img, main script[src]').length") == 0
    assert page.locator("figure .js-plotly-plot").count() == FIGURES
    assert "<script>alert(1)</script>" in page.locator("#plot-tradeoff").inner_text()
    # Plots stay inside their figure, and axis titles inside their plot.
    outside = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
        const frame = plot.getBoundingClientRect();
        return [...plot.querySelectorAll('.infolayer text, .xtick text, .ytick text')]
            .filter(text => text.getBoundingClientRect().left < frame.left - 1
                || text.getBoundingClientRect().right > frame.right + 1)
            .map(text => `${plot.id}: ${text.textContent}`)
    })"""
    assert page.evaluate(outside) == []
    page.close()


def test_browser_refuses_the_page_a_connection(browser, hostile) -> None:
    page = browser.new_page()
    page.goto(hostile.as_uri())
    refused = page.evaluate("""() => new Promise(done => {
        document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective));
        fetch('https://localhost:1/').then(() => done('sent'), () => {});
        setTimeout(() => done('not refused'), 5000);
    })""")
    assert refused == "connect-src"
    page.close()


def test_wide_tables_scroll_inside_their_own_frame(browser, hostile) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(hostile.as_uri())
    frame = page.locator(".scroll", has=page.locator("#endpoint-table"))
    assert frame.evaluate("f => f.scrollWidth > f.clientWidth")
    page.close()


def test_hovering_shows_hostile_text_as_text(browser, hostile) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(hostile.as_uri())
    page.wait_for_function(DRAWN, timeout=60_000)
    page.evaluate("""Plotly.Fx.hover('plot-endpoints',
        [{curveNumber: document.getElementById('plot-endpoints').data.length - 1, pointNumber: 0}])
    """)
    page.wait_for_selector("#plot-endpoints .hoverlayer .hovertext", state="attached")
    assert page.evaluate("document.querySelectorAll('main img, .hoverlayer script').length") == 0
    assert dialogs == []
    page.close()


def test_printed_figures_fit_the_sheet_and_come_back(browser, hostile) -> None:
    page = browser.new_page(viewport={"width": 1000, "height": 900})
    page.goto(hostile.as_uri())
    page.wait_for_function(DRAWN, timeout=60_000)
    page.set_viewport_size({"width": 1200, "height": 900})
    page.wait_for_function("""() => [...document.querySelectorAll('.js-plotly-plot')].every(
        p => !p.clientWidth || p._fullLayout.width > 980)""")
    sizes = """[...document.querySelectorAll('.plot svg.main-svg:first-child')].map(
        s => [s.getBoundingClientRect().width, s.getBoundingClientRect().height])"""
    before = page.evaluate(sizes)
    assert max(height for _, height in before) > 1000, "one figure is longer than a sheet"
    page.evaluate(f"""() => {{
        window.printed = [];
        addEventListener('beforeprint', () => {{
            window.printed = {sizes};
            window.folded = document.querySelectorAll('details:not([open])').length;
        }});
    }}""")
    page.pdf(format="A4")
    printed = page.evaluate("window.printed")
    assert len(printed) == FIGURES
    assert [width for width, _ in printed] == pytest.approx([640] * FIGURES, abs=1)
    assert max(height for _, height in printed) <= 801
    assert page.evaluate("window.folded") == 0, "nothing stays folded on paper"
    page.wait_for_timeout(500)
    assert page.evaluate(sizes) == before
    assert page.locator("details[open]").count() == 0
    page.close()


def test_on_paper_nothing_is_dark_or_wider_than_the_sheet(browser, hostile) -> None:
    page = browser.new_page(viewport={"width": 700, "height": 1000}, color_scheme="dark")
    page.goto(hostile.as_uri())
    page.wait_for_function(DRAWN, timeout=60_000)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert luminance(page.evaluate(paper)) < 0.05
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    wide = "[...document.querySelectorAll('table')].filter(t => t.offsetWidth > 700).length"
    assert page.evaluate(wide) == 0
    kept = "[...document.querySelectorAll('figure')].map(f => getComputedStyle(f).breakInside)"
    assert set(page.evaluate(kept)) == {"avoid"}
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser, hostile, scheme) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
    page.goto(hostile.as_uri())
    page.wait_for_function(DRAWN, timeout=60_000)
    found = page.evaluate("""() => {
        const behind = e => {
            for (; e; e = e.parentElement) {
                const color = getComputedStyle(e).backgroundColor;
                if (!color.endsWith(', 0)')) return color;
            }
        };
        const own = [...document.querySelectorAll('body *')].filter(e =>
            !e.closest('svg, script, noscript')
            && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
        const drawn = [...document.querySelectorAll('.plot text')].filter(e => e.textContent);
        return [...own.map(e => [getComputedStyle(e).color, behind(e), e.textContent.trim()]),
            ...drawn.map(e => [getComputedStyle(e).fill, behind(e), e.textContent])];
    }""")
    assert len(found) > 1000
    assert [row for row in found if contrast(row[0], row[1]) < 4.5] == []
    assert len({paper for _, paper, _ in found}) == (1 if scheme == "light" else 2)
    page.close()


def luminance(color: str) -> float:
    parts = [int(x) / 255 for x in re.findall(r"[0-9]+", color)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(ink: str, paper: str) -> float:
    dark, light = sorted((luminance(ink), luminance(paper)))
    return (light + 0.05) / (dark + 0.05)


def test_the_page_can_be_used_by_keyboard(browser, hostile) -> None:
    page = browser.new_page(viewport={"width": 800, "height": 900})
    page.goto(hostile.as_uri())
    page.wait_for_function(DRAWN, timeout=60_000)
    focused = "(e => [e.tagName, e.className, e.getAttribute('href')])(document.activeElement)"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == ["A", "skip", "#main"]
    box = page.locator(".skip").bounding_box()
    assert box["x"] >= 0 and box["y"] >= 0, "the link shows itself where it is reached"
    links = []
    for _ in range(8):
        page.keyboard.press("Tab")
        links.append(page.evaluate(focused)[2])
    parts = page.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert links == [f"#{part}" for part in parts]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.activeElement.id === 'part-provenance'")
    page.evaluate("document.querySelector('#part-provenance summary').focus()")
    page.keyboard.press("Enter")
    assert page.locator("#part-provenance details").first.evaluate("d => d.open")
    scrolled = page.evaluate("""[...document.querySelectorAll('.scroll')]
        .filter(f => f.scrollWidth > f.clientWidth)
        .map(f => [f.tabIndex, f.getAttribute('role')])""")
    assert scrolled
    assert all(at == [0, "region"] for at in scrolled)
    page.close()


def test_a_screen_reader_finds_landmarks_and_figures_in_words(browser, hostile) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(hostile.as_uri())
    page.wait_for_function(DRAWN, timeout=60_000)
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("navigation", name="Parts of this page").count() == 1
    assert page.get_by_role("region", name="Collateral damage", exact=True).count() == 1
    for name in ("By access of the reader", "All endpoints", "Facts that were to stay"):
        figure = page.get_by_role("figure", name=name)
        assert figure.count() == 1
        assert "Numbers of this figure." in figure.inner_text()
    heard = "document.querySelectorAll('.plot svg.main-svg:not([aria-hidden=true])').length"
    assert page.evaluate(heard) == 0
    page.close()


def test_a_link_to_a_folded_table_opens_it(browser, hostile) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(hostile.as_uri())
    page.wait_for_function(DRAWN, timeout=60_000)
    page.locator("#figure-recall-raw figcaption a").click()
    page.wait_for_function("() => document.getElementById('family-table').closest('details').open")
    page.close()
