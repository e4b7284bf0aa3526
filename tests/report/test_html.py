"""The page is checked as text: complete, in order, escaped, and without a way out."""

import re
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest

from workbench.audit import derivation, hook_summary, summary, verdict
from workbench.audit.schema import (
    BATTERY_VERSION,
    AuditReport,
    Claim,
    Concept,
    ConceptInfo,
    Gap,
    Gate,
    LeakRow,
    Measurement,
    Primary,
    ShadowAttack,
)
from workbench.report import write_html
from workbench.report.card import ICONS
from workbench.report.markup import MINUS, brief, interval, number, p_value, yes
from workbench.report.roles import gold_rhos, standing
from workbench.report.words import ACCESS, CLAIMS, FLAGS, PRIMARY, SETS

ATTACK = "<script>alert(1)</script>"
FIXED = {
    *PRIMARY, *CLAIMS, *SETS, *ACCESS, "deployed", "weights", "observed", "confirmatory",
    "secondary", "supported", "contradicted", "not_tested", "not_testable", "standard", "gold",
    "S", "T", "nothing", "audit/2", "", *(f"{x}{i}" for x in "BPWMGN" for i in range(16)),
}  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, and the text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.headings: list[list[str]] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if re.fullmatch("h[1-6]", tag):
            self.headings.append([tag, ""])

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)
        if re.fullmatch("h[1-6]", self._inside):
            self.headings[-1][1] += data

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
    headings = [(tag, " ".join(words.split())) for tag, words in page.headings]
    assert [words for tag, words in headings if tag in ("h1", "h2")] == [
        *("Audit of toxins", "Verdict: SUPPRESSED", "Where it came back", "Evidence by endpoint"),
        *("Attacks and their controls", "Collateral damage", "Claims", "Limits", "Provenance"),
    ]
    order = [
        *("What was audited", "For whom the answer holds", "Where it comes back"),
        *("How sure this is", "Reasons", "Flags", "Why endpoints could not be used"),
        *("What the model answers", "What its activations hold", "The hooks"),
        *("What was to stay", "How the dose was chosen", "Gates", "Objectives"),
        "What averages hide",
    ]
    assert [words for tag, words in headings if tag == "h3"] == order
    shown = [a["id"] for tag, a in page.tags if tag == "figure"]
    assert shown[:3] == ["figure-access", "figure-endpoints", "figure-recall-text"]
    tables = [a["id"] for tag, a in page.tags if tag == "caption"]
    told = ["endpoint-table", "family-table", "probe-table", "attacks", "kept", "claims", "gates"]
    assert [t for t in tables if t in told] == told
    assert tables.index("gates") < tables.index("objectives") < tables.index("run")


def test_headings_go_down_one_step_at_a_time(page) -> None:
    levels = [int(tag[1]) for tag, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_every_link_leads_to_something_on_the_page(page) -> None:
    ids = {a["id"] for _, a in page.tags if "id" in a}
    links = [str(a["href"]) for _, a in page.tags if "href" in a]
    assert all(link.startswith("#") and link[1:] in ids for link in links), links
    parts = [str(a["id"]) for tag, a in page.tags if tag == "section"]
    assert len(parts) == 8
    assert links[1:9] == [f"#{part}" for part in parts]
    assert links[0] == "#main"


def test_figures_say_their_numbers_in_words(report, page) -> None:
    m2 = next(e for e in report.endpoints if e.id == "M2")
    assert page.count("figure") == page.text.count("Numbers of this figure.")
    assert f"M2 rank profile (A1; {standing(report, m2)}): {m2.rho:.2f}" in page.text
    golds = sorted(rho for e in report.endpoints for rho in gold_rhos(e))
    assert f"each gold against the others: {len(golds)} points, from " in page.text
    assert f": {golds[-1]:.2f}. " in page.text
    (p1,) = (p for p in report.probes if (p.id, p.place) == ("P1", "layer 2, last"))
    assert f"; 2: {p1.original:.2f}. last token of the prompt hits" in page.text
    wanted = ("W1", "edited", "deployed", "V", "centred", "lr 0.001", 64.0)
    last = [
        r
        for r in report.rows
        if (r.endpoint, r.role, r.view, r.subset, r.metric, r.setting, r.x) == wanted
    ]
    value = sum(r.n * r.value for r in last) / sum(r.n for r in last)
    assert f"; 64: {value:.2f}." in page.text


def test_verdict_card_says_what_came_back_where_and_on_what_it_rests(report, page) -> None:
    assert report.verdict.sentence in page.text
    found = [e for e in report.endpoints if e.access == "A1" and e.recovered]
    best = max(found, key=lambda e: e.rho)
    for reason in report.verdict.reasons:
        assert reason in page.text
    for told in (
        "Access audited, up to A4: training the weights; so for the deployer and all users",
        "Lowest access at which it comes back A1: log-probabilities of answers",
        f"(A1): ρ {number(best.rho)} {interval(best.low, best.high)}",
        f"{sum(g.passed for g in report.gates)} of {len(report.gates)} hold; failed: G",
        "Clamp at blocks.2.hook_resid_post",
        "60 about 30 entities",
        f"±{max(e.delta for e in report.endpoints if e.valid and e.role == 'confirmatory'):.2f}",
        "3 models that never knew",
        "bitwise the original's",
        "the SAE's error, which edits of features leave alone",
    ):
        assert told in page.text


@pytest.mark.parametrize("primary", ["SUPPRESSED", "INCONCLUSIVE", "REMOVED"])
def test_where_nothing_comes_back_the_card_says_so(primary, changed, tmp_path) -> None:
    verdict = replace(changed.verdict, primary=primary, lowest_access_recovered="none")
    page = Page(write_html(replace(changed, verdict=verdict), tmp_path))
    told = "comes back nowhere: no endpoint that counts recovers anything at any level Highest ρ"
    assert told in page.text
    assert "Most that comes back there" not in page.text
    unread = tuple(replace(e, valid=False) for e in changed.endpoints)
    page = Page(write_html(replace(changed, verdict=verdict, endpoints=unread), tmp_path))
    assert "comes back not known: no endpoint counts" in page.text
    assert "nowhere" not in page.text and "Highest ρ" not in page.text


@pytest.mark.parametrize("primary", list(PRIMARY))
def test_every_verdict_has_a_shape_and_a_meaning_of_its_own(primary, report, tmp_path) -> None:
    verdict = replace(report.verdict, primary=primary, missing=("three golds are wanted",))
    page = Page(write_html(replace(report, verdict=verdict), tmp_path))
    assert f"Verdict: {primary.replace('_', ' ')}" in page.text
    assert PRIMARY[primary] in page.text
    assert "What is missing for a verdict of absence three golds are wanted" in page.text
    assert len(set(ICONS.values())) == len(ICONS) == len(PRIMARY)
    assert ICONS[primary] in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_every_verdict_flag_and_claim_is_explained() -> None:
    assert set(PRIMARY) == set(get_args(Primary))
    sources = [Path(m.__file__).read_text() for m in (verdict, hook_summary, summary, derivation)]
    for flag in FLAGS:
        assert any(f'"{flag}"' in source for source in sources), flag
    claims = get_args(Claim.__annotations__["claim"])
    assert set(CLAIMS) == set(claims)


def test_every_part_of_the_report_is_there(report, page) -> None:
    for e in report.endpoints:
        assert f"{e.id} {e.name}" in page.text
        assert e.why_invalid in page.text
        assert f"{e.rho:.2f}".replace("-", MINUS) in page.text
    m1 = next(e for e in report.endpoints if e.id == "M1")
    dropped = next(f for f in report.families if not f.kept)
    for told in (
        " ".join(f"{g:.2f}" for g in m1.m.G_each),
        "60 (30 entities)",
        f"dropped: {dropped.why_dropped}",
        *(g.note for g in report.gates),
        *(c.status.replace("_", " ") for c in report.claims),
        *(a.setting for a in report.attacks),
        *(p.place for p in report.probes),
        *report.collateral.why,
        *report.limits,
        *(gold.sha256 for gold in report.card.models.gold),
        report.card.prereg_sha256,
        report.card.target.facts_sha256,
        "that a reader learns the source of a toxin",
        "Probe on the part 'err' of the stream",
        "Kolmogorov–Smirnov distance to the golds",
        "locality worst set",
        "rotation 2, V",
    ):
        assert told in page.text, told


def test_failed_gates_are_told_with_what_they_take_away(report, tmp_path) -> None:
    gate = Gate("G3", False, -1.0, 0.0, "folds do not overlap", ("M3", "M4"))
    page = Page(write_html(replace(report, gates=(gate,)), tmp_path))
    assert "1 of 1 failed" in page.text
    assert f"G3 FAIL {MINUS}1 0 folds do not overlap M3, M4" in page.text
    assert "dropped by G3" in page.text


def test_numbers_are_told_as_they_are() -> None:
    assert interval(-1000.0, 1000.0) == f"[{MINUS}∞, ∞]"
    assert [number(x) for x in (None, float("nan"), -0.001, -0.25)] == [
        *("none", "none", "0.00", f"{MINUS}0.25")
    ]
    assert [yes(x) for x in (True, False, None)] == ["yes", "no", "not checked"]
    assert [p_value(x) for x in (0.0004, 0.04)] == ["< 0.001", "0.040"]
    assert [brief(x) for x in (None, 0.0123456, -176.4, 999.4, 999.6, 1113.2, 2e9)] == [
        "none",
        "0.0123",
        f"{MINUS}176",
        "999",
        "1000",
        "1113",
        "2e+09",
    ]


def test_text_of_a_report_never_becomes_a_tag(report, doses, tmp_path) -> None:
    before = Page(write_html(report, tmp_path, doses))
    path = write_html(hostile(report), tmp_path, [{**row, "sites": ATTACK} for row in doses])
    after = Page(path)
    assert ATTACK not in path.read_text(encoding="utf-8")
    assert after.text.count(ATTACK) > 40
    assert after.count("script") == before.count("script")


def hostile(value: Any) -> Any:
    """The report with a tag in place of every text that no schema fixes."""
    if isinstance(value, str):
        return value if value in FIXED or value.startswith(("layer ", "lr ")) else ATTACK
    if isinstance(value, tuple):
        return tuple(hostile(v) for v in value)
    if isinstance(value, dict):
        # Keys of numbers by view or family stay apart, which one text for all would not.
        return {k: hostile(v) for k, v in value.items()}
    if isinstance(value, Measurement):
        return value
    if is_dataclass(value):
        return replace(value, **{f.name: hostile(getattr(value, f.name)) for f in fields(value)})  # pyright: ignore[reportArgumentType]
    return value


def test_the_file_is_complete_and_forbids_connections(page) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        assert not {"src", "srcset", "action"} & set(attributes), (tag, attributes)
    (meta,) = (a for _, a in page.tags if "http-equiv" in a)
    assert meta["http-equiv"] == "Content-Security-Policy"
    assert str(meta["content"]).startswith("default-src 'none'")


def test_plotly_is_in_the_file_once(report, tmp_path) -> None:
    text = write_html(report, tmp_path).read_text(encoding="utf-8")
    assert text.count("plotly.js v") == 1
    assert len(text) < 6e6


def test_tables_have_captions_and_scopes_and_the_page_a_language(page) -> None:
    assert ("html", {"lang": "en"}) in page.tags
    assert page.count("table") == page.count("caption") > 12
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    assert page.count("figure") == page.count("figcaption") == 13
    assert page.count("h1") == 1
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)


def test_other_reports_are_pages_too(changed, filtered, no_golds, quick, tmp_path) -> None:
    pages = [Page(write_html(r, tmp_path)) for r in (changed, filtered, no_golds, quick)]
    assert [p.count("figure") for p in pages] == [12, 12, 12, 10]
    assert not any("There is nothing to draw." in p.text for p in pages)
    assert not any("The hooks" in p.text for p in pages)
    assert "12 tensors changed by 3.12% of their norm, rank up to 4" in pages[0].text
    assert "filter refuses_toxins" in pages[1].text
    assert "There are no golds here" in pages[2].text
    assert not any("There are no golds here" in p.text for p in pages[:2])
    assert f"{BATTERY_VERSION}, profile quick" in pages[3].text
    titled = Page(write_html(changed, tmp_path, title="A & B"))
    assert "A & B" in titled.text


def test_report_with_nothing_in_it_is_still_a_page(no_golds, tmp_path) -> None:
    collateral = replace(no_golds.collateral, sets=(), ppl_ratio=None, valid_answers=None, why=())
    bare = replace(
        no_golds, rows=(), endpoints=(), families=(), probes=(), attacks=(), tail=(),
        derivation=None, collateral=collateral, leaks=(), depth=None, erasures=(), coverage=(),
    )  # fmt: skip
    page = Page(write_html(bare, tmp_path))
    assert page.text.count("There is nothing to draw.") == page.count("figure") == 9


def test_report_saved_and_reopened_gives_the_same_page(report, tmp_path) -> None:
    again = type(report).open(report.save(tmp_path / "saved"))
    texts = [write_html(r, tmp_path / n).read_text() for r, n in ((report, "a"), (again, "b"))]
    assert texts[0] == texts[1]


def test_what_passes_the_sae_by_stands_on_the_card(report: AuditReport, tmp_path: Path) -> None:
    assert report.hooks is not None
    shares = {"edit 1": (0.41, 0.3, 0.5), "edit 2": (0.2, 0.1, 0.3)}
    shown = replace(report, hooks=replace(report.hooks, error_share=shares))
    page = write_html(shown, tmp_path).read_text()
    card = page[page.index('class="verdict') : page.index("Reasons</h3>")]
    assert "41% [0.30, 0.50] of the target" in card
    assert "Past the SAE" not in write_html(report, tmp_path).read_text()


def test_a_concept_and_shadows_are_shown_as_text(report: AuditReport, tmp_path: Path) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    info = ConceptInfo("ab", nasty, f"{nasty} in the text it says so", 0.8, 2)
    found = Concept(30, 0.8, {"Eh": 0.1}, (0.5, 0.6), Gap(-0.7, -0.8, -0.6), f"{nasty} fell")
    leak = LeakRow("loss_nats", "", Gap(0.6, 0.5, 0.7), 0.9, (0.5, 0.5), None, None, True)
    attack = ShadowAttack("", 0.7, 0.3, 0.1, 0.25, 500, 8, 8, leaks=True)
    shown = replace(
        report,
        card=replace(report.card, concept=info),
        concept=found,
        leaks=(leak,),
        shadows=attack,
    )
    page = write_html(shown, tmp_path).read_text()
    assert nasty not in page
    assert "&lt;img src=x onerror=alert(1)&gt; fell" in page
    assert "8 and 8" in page and "kappa 0.80, 2 of them" in page
    none = write_html(replace(shown, shadows=None), tmp_path).read_text()
    assert "No shadow models were given" in none
