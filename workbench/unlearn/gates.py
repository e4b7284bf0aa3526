"""What a gate is fitted on, and on which other prompts its threshold is set."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import EditError
from workbench.facts.mentions import name_finder
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.interventions import Gate, gate_peaks
from workbench.locate.rows import prompt_streams
from workbench.models.score import Question, ask
from workbench.unlearn.training import HELD_OUT, kept_texts

UNRELATED = 450
"""Facts of other relations that a gate is fitted and its threshold set on, at most."""
TEXTS = 600
"""Retained texts, likewise."""
FORGET_PROMPTS = 3000
"""Forget prompts that a gate is fitted on, at most."""


@dataclass(frozen=True)
class Shown:
    """Questions in training templates and texts; none of R_va or R_te.

    Attributes:
        forget: of forget facts.
        retained: of R_tr, about two thirds of its subjects; `unrelated`: of other relations, and
            training texts in which no name of the target stands, as if they were questions.
        spared: of R_tr, about the last third; `spared_unrelated`, `spared_texts`: the same of the
            others. What is fitted has not seen them, so they tell its false alarms.
    """

    forget: tuple[Question, ...]
    retained: tuple[Question, ...]
    unrelated: tuple[Question, ...]
    spared: tuple[Question, ...]
    spared_unrelated: tuple[Question, ...]
    spared_texts: tuple[Question, ...]

    @property
    def others(self) -> tuple[Question, ...]:
        return (*self.retained, *self.unrelated)


def shown(target: Target, seed: int) -> Shown:
    """What gates of a target are fitted on; the seed draws it."""
    rng = random.Random(f"{seed}, gates")
    forget = ask(target.forget, "train")
    if len(forget) > FORGET_PROMPTS:
        forget = tuple(rng.sample(forget, FORGET_PROMPTS))
    others = [f for f in target.neighbours["U"] if f.stated and f.templates]
    others = rng.sample(others, min(UNRELATED, len(others)))
    sides = [ask(facts, "train") for kind in (target.retain["R_tr"], others)
             for facts in _parted(kind, rng)]  # fmt: skip
    fitted, spared, unrelated, spared_unrelated = sides
    texts = _texts(target, rng)
    half = len(texts) // 2
    unrelated = (*unrelated, *texts[:half])
    return Shown(forget, fitted, unrelated, spared, spared_unrelated, texts[half:])


def _texts(target: Target, rng: random.Random) -> tuple[Question, ...]:
    """Retained texts without a name of the target, in which gates are to stay shut."""
    find = name_finder(target.entities)
    kept = [text for text in kept_texts(target, HELD_OUT) if not find(text)]
    drawn = rng.sample(kept, min(TEXTS, len(kept)))
    return tuple(Question(Fact(text, "", "", (), ()), text) for text in drawn)


def _parted(facts: Sequence[Fact], rng: random.Random) -> tuple[list[Fact], list[Fact]]:
    """Facts about two thirds of the subjects, and those about the last third."""
    subjects = sorted({f.subject for f in facts})
    last = set(rng.sample(subjects, len(subjects) // 3))
    return [f for f in facts if f.subject not in last], [f for f in facts if f.subject in last]


def streams_of(
    model: Any, asked: Sequence[Question], site: Site, dtype: torch.dtype | None = None
) -> list[Float[Tensor, "_pos d_model"]]:
    """The stream of each prompt, in the model's type or another."""
    found = prompt_streams(model, asked, site)
    return found if dtype is None else [s.to(dtype) for s in found]


@torch.no_grad()
def spared_from(
    gate: Gate,
    model: Any,
    given: Shown,
    false_alarms: float,
    dtype: torch.dtype | None = None,
) -> Gate:
    """The gate with a threshold that at most this share of spared prompts of any kind exceeds.

    Raises:
        EditError: a share that is none, or no spared prompt.
    """
    if not 0 <= false_alarms < 1:
        raise EditError(f"false_alarms={false_alarms:g}: wanted a share from 0 on and below 1")
    peaks = [
        gate_peaks(gate, streams_of(model, asked, gate.site, dtype)).double()
        for asked in (given.spared, given.spared_unrelated, given.spared_texts)
        if asked
    ]
    if not peaks:
        raise EditError(
            "no retained prompt is left to set a gate's threshold on: wanted a target with at "
            "least three retained subjects in R_tr"
        )
    limits = [p.quantile(1 - false_alarms, interpolation="higher") for p in peaks]
    return replace(gate, threshold=float(max(limits)))


def share_open(gate: Gate, streams: Sequence[Float[Tensor, "_pos d_model"]]) -> float:
    """Share of prompts on which the gate opens."""
    opened = [bool(where.any()) for where in opened_at(gate, streams)]
    return sum(opened) / max(1, len(opened))


@torch.no_grad()
def opened_at(gate: Gate, streams: Sequence[Tensor]) -> Iterator[Tensor]:
    """Of each prompt, the tokens at which the gate is open."""
    return (gate.open_at(s) for s in streams)
