"""The page is checked as text: complete, in order, escaped, and without a way out."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from workbench.audit import Gate
from workbench.report import write_html

ATTACK = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture
def page(report, doses, tmp_path) -> Page:
    return Page(write_html(report, tmp_path, doses))


def test_out_is_a_folder_or_a_file(report, tmp_path) -> None:
    assert write_html(report, tmp_path / "new") == tmp_path / "new" / "report.html"
    assert write_html(report, str(tmp_path / "a.html")) == tmp_path / "a.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "new"]


def test_the_story_is_told_in_order(page) -> None:
    order = [
        *("Audit of toxins", "Verdict: SUPPRESSED", "Reasons", "Lowest access level", "Table 1."),
        *(f"Figure {i}." for i in range(1, 7)),
        *("Table 2. Gates", "Table 3. Objectives", "Limits", "Provenance"),
    ]
    places = [page.text.index(words) for words in order]
    assert places == sorted(places)


def test_verdict_says_what_came_back_and_where(report, page) -> None:
    assert report.verdict.sentence in page.text
    for reason in report.verdict.reasons:
        assert reason in page.text
    assert "A1: log-probabilities of answers" in page.text
    assert "bitwise the original's" in page.text


def test_endpoints_gates_objectives_limits_and_provenance_are_all_there(report, page) -> None:
    for e in report.endpoints:
        assert e.id in page.text
        assert e.why_invalid in page.text
    for told in (
        "0.22 [0.14, 0.32]",
        "0.05 (0.05, 0.06, 0.04)",
        "120 (40 entities)",
        "all 3 passed",
        "[0.85, 0.92]",
        *report.limits,
        *report.provenance["models"].values(),
        *report.provenance["edits"],
        "relearn.steps",
        "size_facts",
    ):
        assert told in page.text


def test_failed_gate_is_told(report, tmp_path) -> None:
    gates = (*report.gates, Gate("G3", False, -1.0, 0.0, "folds do not overlap"))
    page = Page(write_html(replace(report, gates=gates), tmp_path))
    assert "1 of 4 failed" in page.text
    assert "G3 FAIL −1 0 folds do not overlap" in page.text  # noqa: RUF001


def test_unbounded_intervals_and_intervals_without_width_are_not_told_as_numbers(
    report, tmp_path
) -> None:
    wild = replace(report.endpoints[0], low=-1000.0, high=1000.0)
    flat = [replace(r, low=r.value, high=r.value) for r in report.rows if r.endpoint == "objective"]
    page = Page(write_html(replace(report, endpoints=(wild,), rows=tuple(flat)), tmp_path))
    assert "[−∞, ∞]" in page.text  # noqa: RUF001
    assert page.text.count("none given") == len(flat)


def test_text_of_a_report_never_becomes_a_tag(make_report, doses, tmp_path) -> None:
    before = Page(write_html(make_report(), tmp_path, doses))
    hurt = make_report(target=ATTACK, reason=ATTACK)
    hurt = replace(
        hurt,
        rows=tuple(
            replace(r, detail=ATTACK) if r.endpoint in ("probe", "objective") else r
            for r in hurt.rows
            if r.detail != "last"
        ),
        endpoints=tuple(replace(e, id=ATTACK, why_invalid=ATTACK) for e in hurt.endpoints),
        limits=tuple(ATTACK for _ in hurt.limits),
        provenance={**hurt.provenance, "edits": [ATTACK], ATTACK: {ATTACK: ATTACK}},
    )
    path = write_html(hurt, tmp_path, [{**row, "sites": ATTACK} for row in doses])
    after = Page(path)
    assert ATTACK not in path.read_text(encoding="utf-8")
    assert ATTACK in after.text
    assert after.count("script") == before.count("script")


def test_the_file_is_complete_and_forbids_connections(page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action"} & set(attributes), (tag, attributes)
    (meta,) = (a for _, a in page.tags if "http-equiv" in a)
    assert meta["http-equiv"] == "Content-Security-Policy"
    assert str(meta["content"]).startswith("default-src 'none'")


def test_plotly_is_in_the_file_once(report, tmp_path) -> None:
    text = write_html(report, tmp_path).read_text(encoding="utf-8")
    assert text.count("plotly.js v") == 1
    assert len(text) < 6e6


def test_tables_have_captions_and_scopes_and_the_page_a_language(page) -> None:
    assert ("html", {"lang": "en"}) in page.tags
    assert page.count("table") == page.count("caption") > 3
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    assert page.count("figure") == page.count("figcaption") == 6
    assert page.count("h1") == 1
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)


def test_report_without_target_probe_relearning_or_doses_is_still_a_page(
    make_report, tmp_path
) -> None:
    bare = replace(make_report(hooks=False, probe=False, relearn=False), provenance={})
    page = Page(write_html(bare, tmp_path))
    assert "Audit of an edited model" in page.text
    assert page.count("figure") == 5
    assert page.text.count("There is nothing to draw.") == 2
    titled = Page(write_html(bare, tmp_path, title="A & B"))
    assert "A & B" in titled.text


def test_report_saved_and_reopened_gives_the_same_page(report, tmp_path) -> None:
    again = type(report).open(report.save(tmp_path / "saved"))
    texts = [write_html(r, tmp_path / n).read_text() for r, n in ((report, "a"), (again, "b"))]
    assert texts[0] == texts[1]
