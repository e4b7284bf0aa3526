"""What is said of one feature in words and tables; figures stand in `figures`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench.dashboards import Feature, Passage, Preview
from workbench.report.browser.nodes import Node, node

SHADE = "rgba(230, 120, 0, {:.2f})"
"""Colour behind a token, more opaque the more a feature fires; legible under dark and light ink."""


def about(card: Mapping[str, Any]) -> str:
    """What was gathered, from which model and texts."""
    target = f", target {card['target']}" if card["target"] else ""
    return (
        f"{card['model']} at {card['site']}{target}: {card['features']} features, "
        f"{card['counted']} tokens of {card['documents']} texts"
    )


def passage(shown: Passage, peak: float) -> Node:
    """Tokens on a ground that is the stronger the more the feature fires; hovering tells how much.

    The token that the passage was chosen for is underlined.
    """
    tokens = []
    for i, (token, act) in enumerate(zip(shown.tokens, shown.acts, strict=True)):
        style = {"background": SHADE.format(0.75 * act / peak)} if act > 0 and peak > 0 else {}
        traits: dict[str, Any] = {"title": f"{act:.3g}", "class_": "token"}
        if i == shown.at:
            traits["class_"] = "token at"
        if style:
            traits["style"] = style
        tokens.append(node("span", _visible(token), **traits))
    best = max(shown.acts, default=0.0)
    said = node("span", f"{best:.2f}", class_="act", title="largest activation shown")
    return node("li", said, node("span", *tokens, class_="text"))


def _visible(token: str) -> str:
    return token.replace("\n", "⏎").replace("\t", "⇥") or "∅"


def passages(feature: Feature) -> Node:
    """The passages of highest activation, then some of each fifth of its activations."""
    peak = feature.numbers["peak"]
    if not feature.top:
        return node("section", node("p", "This feature fires on none of the texts."))
    parts = [
        node("h4", "Where it fires most"),
        node("ul", *(passage(p, peak) for p in feature.top), class_="passages"),
    ]
    for i, group in reversed(list(enumerate(feature.groups))):
        step = 100 // len(feature.groups)
        name = f"From {step * i} % to {step * (i + 1)} % of its activations"
        inner = node("ul", *(passage(p, peak) for p in group), class_="passages")
        parts.append(node("details", node("summary", name), inner))
    return node("section", *parts, class_="passages-of")


def neighbours(feature: Feature) -> Node:
    """Features alike by decoder cosine, and features that fire on the same tokens."""
    rows = [("By decoder cosine", feature.like), ("By co-firing (Jaccard)", feature.fire)]
    parts = []
    for name, found in rows:
        parts.append(node("h4", name))
        items = [node("li", go_to(i), f" {value:.2f}") for i, value in found]
        parts.append(node("ul", *items, class_="row") if items else node("p", "none"))
    return node("section", *parts)


def go_to(index: int) -> Node:
    """A button that opens a feature."""
    return node("button", str(index), type="button", class_="go", data_feature=index)


def summary(feature: Feature) -> Node:
    """How often it fires, how much, and what ablating it does."""
    n = feature.numbers
    said = [
        ("Fires on", f"{n['density']:.3%} of tokens"),
        ("Largest activation", f"{n['peak']:.3g}"),
        ("Mean where it fires", f"{n['mean']:.3g}"),
    ]
    if "rate_forget" in n:
        told = f"{n['rate_forget']:.3%} / {n['rate_retain']:.3%}"
        said.append(("In texts that state the target / others", told))
    for side, name in (("forget", "forget facts (S)"), ("retain", "retained facts (R_va)")):
        key = f"effect_{side}"
        if key in n:
            told = f"{n[key]:+.4f} nats [{n[f'{key}_low']:+.4f}, {n[f'{key}_high']:+.4f}]"
            said.append((f"Ablated, answers lose, {name}", told))
    pairs = [part for name, value in said for part in (node("dt", name), node("dd", value))]
    return node("dl", *pairs, class_="numbers")


def answers(preview: Preview) -> Node:
    """What the model answers before and after, and a model that never knew."""
    who = [("before", preview.before), ("after", preview.after)]
    who += [("gold", preview.gold)] if preview.gold else []
    heads = ["question", "true", *(name for name, _ in who)]
    rows = []
    for i, (question, true) in enumerate(preview.questions):
        said = [node("td", *_marked(s.answers[i], true)) for _, s in who]
        rows.append(node("tr", node("td", question), node("td", true), *said))
    return table("Answers, by the candidate with the highest probability", heads, rows)


def _marked(said: str, true: str) -> Iterable[Node | str]:
    return (said, " ", node("span", "✓", title="right")) if said == true else (said,)


def costs(preview: Preview) -> Node:
    """How far texts that are to stay have moved."""
    text = (
        f"Side effects on texts that state nothing of the target: {preview.after.moved:.4f} nats "
        "per token of divergence from the original"
    )
    gold = f"; a model that never knew: {preview.gold.moved:.4f}" if preview.gold else ""
    return node("p", f"{text}{gold}.")


def table(caption: str, heads: Sequence[str], rows: Sequence[Node]) -> Node:
    """A table with a caption and column heads."""
    head = node("tr", *(node("th", h, scope="col") for h in heads))
    inner = node("table", node("caption", caption), node("thead", head), node("tbody", *rows))
    attrs = {"class_": "wide", "tabindex": 0, "role": "region", "aria_label": caption}
    return node("div", inner, **attrs)
