"""Bits are saved where something can be read, and only beyond what is known anyway."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from workbench.audit.probes.code import (
    SHARES,
    _blocks,
    baseline,
    conditional_bits,
    online_bits,
    uniform_bits,
)
from workbench.audit.probes.labels import Labels
from workbench.facts.schema import Fact
from workbench.facts.target import Target


@pytest.fixture
def labels(club: Target) -> Labels:
    return Labels.of(club)


def planted(labels: Labels, facts: Any, strength: float, seed: int = 0) -> torch.Tensor:
    """Rows, one place, that hold each fact's object with this strength in noise."""
    generator = torch.Generator().manual_seed(seed)
    code = torch.randn(
        len(labels.relations),
        labels.allowed.shape[1],
        40,
        generator=torch.Generator().manual_seed(99),
    )
    noise = torch.randn(len(facts), 40, generator=generator)
    return (strength * code[labels.relation_of(facts), labels.objects(facts)] + noise)[None]


def test_code_is_short_where_rows_hold_the_objects_and_not_where_they_do_not(
    labels: Labels, club: Target
) -> None:
    facts = (*club.forget, *club.retain["R_tr"], *club.retain["R_te"])
    ridge = torch.tensor([1.0])
    uniform = uniform_bits(labels, facts)
    assert uniform.tolist() == pytest.approx([math.log2(len(labels.candidates[0]))] * len(facts))

    def compression(strength: float) -> float:
        rows = [planted(labels, facts, strength, seed) for seed in (1, 2)]
        return float(uniform.sum() / online_bits(labels, facts, *rows, ridge).sum())

    assert compression(4.0) > 1.2
    assert compression(0.0) < 1.03


def test_first_block_costs_what_guessing_costs_and_no_entity_is_split(
    labels: Labels, club: Target
) -> None:
    facts = club.forget
    blocks = _blocks(facts, 3)
    assert sorted(i for block in blocks for i in block) == list(range(len(facts)))
    of = [{facts[i].subject for i in block} for block in blocks]
    assert all(not a & b for n, a in enumerate(of) for b in of[n + 1 :])
    ends = np.cumsum([len(names) for names in of]) / len(set().union(*of))
    assert all(end >= share for end, share in zip(ends, SHARES, strict=True))
    rows = planted(labels, facts, 4.0)
    bits = online_bits(labels, facts, rows, rows, torch.tensor([1.0]), 3)
    assert torch.equal(bits[0, blocks[0]], uniform_bits(labels, facts)[blocks[0]])
    assert torch.equal(bits, online_bits(labels, facts, rows, rows, torch.tensor([1.0]), 3))


def test_bits_beyond_a_baseline_are_none_where_the_baseline_says_it_all(
    labels: Labels, club: Target
) -> None:
    facts = {name: club.retain[name] for name in ("R_tr", "R_va")} | {"F": club.forget}
    strong = {name: planted(labels, f, 3.0, 1) for name, f in facts.items()}
    other = {name: planted(labels, f, 0.0, 2)[0] for name, f in facts.items()}
    new = conditional_bits(labels, other, strong, facts).mean()
    same = {name: rows[0] for name, rows in strong.items()}
    again = conditional_bits(labels, same, strong, facts).mean()
    nothing = conditional_bits(
        labels, same, {n: planted(labels, f, 0.0, 3) for n, f in facts.items()}, facts
    ).mean()
    assert new > 0.3
    assert abs(again) < 0.15
    assert nothing < 0.1


def test_baseline_holds_the_name_and_what_is_no_secret(club: Target) -> None:
    names = torch.arange(float(len(club.forget)))[None, :, None]
    known = baseline(club, names, club.forget, club.retain["R_tr"])
    assert torch.equal(known[:, :1], names[0])
    secret = {f.relation for f in club.forget}
    others = {f.relation for f in club.facts.facts} - secret
    assert (known.shape[1] > 1) == bool(others)


def test_baseline_leaves_out_what_follows_from_the_secret(club: Target) -> None:
    """A consequence of each forgotten fact about one relation would give that fact away."""
    asked = [f for f in club.forget if f.relation == club.forget[0].relation]
    told = [
        Fact(f.subject, "told", f"told {f.object}", f.templates, f.audit_templates)
        for f in (*asked, *club.retain["R_tr"])
    ]
    follows = [replace(f, premises=((f.subject, asked[0].relation),)) for f in told]
    names = torch.zeros(1, len(asked), 1)

    def columns(more: list[Fact], derived: tuple[Fact, ...]) -> int:
        facts = replace(club.facts, facts=(*club.facts.facts, *more))
        target = replace(club, facts=facts, derived=derived)
        return baseline(target, names, asked, asked).shape[1]

    secret = tuple(f for f in follows if f.subject in {a.subject for a in asked})
    plain = columns([], ())
    assert columns(told, ()) > plain
    assert columns(follows, secret) == plain
    assert columns([replace(f, stated=False) for f in told], ()) == plain


def test_a_handful_of_facts_has_a_code_too(labels: Labels, club: Target) -> None:
    """The first blocks hold one fact in all, of which nothing can be learned."""
    facts = [next(f for f in club.forget if f.subject == e) for e in club.entities[:20]]
    blocks = _blocks(facts, 0)
    assert len(blocks[0]) == 1
    bits = online_bits(
        labels, facts, planted(labels, facts, 4.0), planted(labels, facts, 4.0, 1),
        torch.tensor([1.0]),
    )  # fmt: skip
    assert torch.isfinite(bits).all()
    first_two = [*blocks[0], *blocks[1]]
    assert torch.equal(bits[0, first_two], uniform_bits(labels, facts)[first_two])
    assert not torch.equal(bits[0], uniform_bits(labels, facts))
