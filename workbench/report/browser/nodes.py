"""Parts of a page as a tree, written once, that becomes HTML text or Dash components."""

from dataclasses import dataclass, field
from typing import Any

from workbench.report.markup import Html, html

TAGS = frozenset(
    "article button caption dd details div dl dt em h3 h4 li p section small span strong summary "
    "table tbody td th thead tr ul".split()
)


@dataclass(frozen=True)
class Node:
    """An element; strings in it are text and never markup.

    Attributes:
        attrs: as HTML names them; `style` is a dict.
    """

    tag: str
    children: tuple["Node | str", ...] = ()
    attrs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.tag in TAGS, self.tag


def node(tag: str, *children: "Node | str", **attrs: Any) -> Node:
    """An element; `class_` stands for class, and other underscores for hyphens."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attrs.items()}
    return Node(tag, children, named)


def to_html(part: Node | str) -> Html:
    """The tree as text of a page, everything in it escaped."""
    if isinstance(part, str):
        return html(part)
    attrs = "".join(f' {name}="{html(_flat(value))}"' for name, value in part.attrs.items())
    inner = "".join(to_html(child) for child in part.children)
    return Html(f"<{part.tag}{attrs}>{inner}</{part.tag}>")


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ";".join(f"{name}:{v}" for name, v in value.items())
    return str(value)
