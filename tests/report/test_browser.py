"""The page in a real browser: it draws, fits a narrow screen, and runs nothing of others."""

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
WIDE = """[...document.querySelectorAll('.js-plotly-plot')].every(plot =>
    Math.abs(plot._fullLayout.width - plot.clientWidth) < 2)"""
ATTACK = "<img src=x onerror=alert(1)><script>alert(1)</script>"
FIGURES = 13
DRAWN = f"document.querySelectorAll('.js-plotly-plot .main-svg').length >= {2 * FIGURES}"

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


@pytest.mark.parametrize("width", [390, 1200])
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


def test_printed_figures_fit_the_sheet(browser, hostile) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(hostile.as_uri())
    page.wait_for_function(DRAWN, timeout=60_000)
    page.evaluate("""() => {
        window.printed = [];
        addEventListener('beforeprint', () => document.querySelectorAll('.js-plotly-plot')
            .forEach(plot => window.printed.push(plot._fullLayout.width)));
    }""")
    page.pdf(format="A4")
    assert page.evaluate("window.printed") == [640] * FIGURES
    page.close()
