"""The README's pictures: pages that the project's own commands wrote, as Chromium shows them.

    workbench demo
    workbench browse runs/browse --sae valley/blocks.1.hook_resid_post --model valley \
        --facts valley --target toxins
    python notebooks/pictures.py runs/demo/report.html http://127.0.0.1:8050 images
"""

import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PICKED = 6


def verdict(page: Page, report: str, out: Path) -> None:
    page.goto(Path(report).resolve().as_uri())
    page.locator("section.verdict").screenshot(path=out / "verdict.png")


def browser(page: Page, url: str, out: Path) -> None:
    page.goto(url)
    for i in range(PICKED):
        page.locator("#table tbody button").nth(i).click()
        page.wait_for_timeout(2000)
        page.click("#pick")
        page.wait_for_timeout(4000)
    page.wait_for_timeout(6000)
    page.screenshot(path=out / "browser.png", clip={"x": 0, "y": 0, "width": 1400, "height": 1700},
                    full_page=True)  # fmt: skip


def main(report: str, url: str, out: Path) -> None:
    with sync_playwright() as play:
        options = ["--no-sandbox", "--disable-gpu"]
        chromium = play.chromium.launch(executable_path="/usr/bin/chromium", args=options)
        page = chromium.new_page(viewport={"width": 1400, "height": 1700})
        verdict(page, report, out)
        browser(page, url, out)
        chromium.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
