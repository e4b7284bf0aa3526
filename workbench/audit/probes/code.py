"""P7 and P8: how many bits a reader saves, by an online code and beyond what names give away."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.audit.probes.labels import Labels
from workbench.audit.probes.linear import Frame, Lesson, Readers, Rows, fitted, tuned
from workbench.facts.schema import Fact
from workbench.facts.target import Target

SHARES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Ends of the blocks of an online code, as shares of the entities."""


def online_bits(
    labels: Labels,
    facts: Sequence[Fact],
    taught: Rows,
    asked: Rows,
    ridge: Float[Tensor, " place"],
    seed: int = 0,
) -> Float[Tensor, "place fact"]:
    """Bits that each fact's object costs in a code that learns as it goes.

    Entities come in random order, in blocks. A block is coded by readers that were fitted on all
    facts of the blocks before it and to which one more of each candidate is added, since an
    object may not have occurred; the first, and any before two facts are known, by a uniform code
    over the relation's candidates. A fact
    never helps to code another one about its own entity. Compression is the uniform code's
    length over the sum: 1 where nothing can be read, below 1 where readers are misled.

    Args:
        taught: rows that readers are fitted on, of `facts`; `asked`: rows of the same facts, coded.
        ridge: penalty of the readers at each place.
        seed: decides the order of the entities.

    Source: online code, Voita and Titov 2020, arXiv 2003.12298. Differs: blocks are of whole
    entities, since rows of one entity in two blocks would leak.
    """
    blocks, sizes = _blocks(facts, seed), torch.tensor([len(c) for c in labels.candidates])
    uniform = uniform_bits(labels, facts)
    bits = uniform.expand(len(taught), -1).clone()
    for last in range(1, len(blocks)):
        known, coded = [i for block in blocks[:last] for i in block], blocks[last]
        if len(known) < 2 or not coded:  # of one row there is no spread to scale by
            continue
        frame = Frame.of(taught[:, known])
        readers = fitted(labels, _lesson(labels, frame, taught, facts, known), ridge)
        lesson = _lesson(labels, frame, asked, facts, coded)
        seen = torch.bincount(labels.relation_of([facts[i] for i in known]), minlength=len(sizes))
        n, k = (t[labels.relation_of([facts[i] for i in coded])] for t in (seen, sizes))
        bits[:, coded] = -((n * true_bits(readers, lesson).exp2() + 1) / (n + k)).log2()
    return bits


def uniform_bits(labels: Labels, facts: Sequence[Fact]) -> Float[Tensor, " fact"]:
    """What each fact's object costs if all of its relation's candidates are alike."""
    sizes = [math.log2(len(c)) for c in labels.candidates]
    return torch.tensor(sizes)[labels.relation_of(facts)]


def conditional_bits(
    labels: Labels,
    known: Mapping[str, Float[Tensor, "fact known"]],
    rows: Mapping[str, Rows],
    facts: Mapping[str, Sequence[Fact]],
) -> Float[Tensor, "place fact"]:
    """Bits that the stream adds about each forget fact to what is known without it.

    Two readers are fitted on R_tr under penalties chosen on R_va, one on what is known of the
    entity and one on that and the stream; the value is the second's log-probability of the object
    less the first's, in bits. Negative where the stream misleads; nothing is clipped.

    Args:
        known: by fold (`R_tr`, `R_va`, `F`), what anybody knows of each fact's entity.
        rows: by fold, the stream at each place; `facts`: by fold, what the rows are of.

    Source: V-information, Xu et al. 2020, arXiv 2002.10689; conditional on a baseline, Hewitt et
    al. 2021, arXiv 2109.09234.
    """
    alone = {name: part[None] for name, part in known.items()}
    both = {
        name: torch.cat([known[name].expand(len(x), -1, -1), x], -1) for name, x in rows.items()
    }
    return _transfer_bits(labels, both, facts) - _transfer_bits(labels, alone, facts)


def baseline(target: Target, names: Rows, fold: Sequence[Fact], like: Sequence[Fact]) -> Tensor:
    """What anybody knows of the entity of each fact: its name, and its facts that are no secret.

    What follows from the target is as secret as the target, and so is what no text states.

    Args:
        names: the stream at the name before the first block, one place.
        fold: the facts; `like`: those that readers are fitted on, in which a column must vary.

    Returns:
        Float[fact, known].
    """
    told: dict[str, set[tuple[str, str]]] = {}
    for fact in target.facts.facts:
        if fact.stated and fact.key not in target.forget_keys:
            told.setdefault(fact.subject, set()).add((fact.relation, fact.object))
    secret = {f.relation for f in target.forget}
    shared = sorted({a for f in like for a in told.get(f.subject, ()) if a[0] not in secret})
    table = torch.tensor(
        [[float(a in told.get(f.subject, ())) for a in shared] for f in fold]
    ).reshape(len(fold), len(shared))
    fitted_on = torch.tensor(
        [[float(a in told.get(f.subject, ())) for a in shared] for f in like]
    ).reshape(len(like), len(shared))
    varied = fitted_on.std(0) > 0 if len(shared) and len(like) > 1 else torch.zeros(0).bool()
    return torch.cat([names[0], table[:, varied]], -1)


def true_bits(readers: Readers, lesson: Lesson) -> Float[Tensor, "place fact"]:
    """Log2 of the probability of each right answer."""
    logprobs = readers.logprobs(lesson)
    right = lesson.answers.expand(len(logprobs), -1)[..., None]
    return logprobs.gather(-1, right)[..., 0] / math.log(2)


def _transfer_bits(
    labels: Labels, rows: Mapping[str, Rows], facts: Mapping[str, Sequence[Fact]]
) -> Float[Tensor, "place fact"]:
    frame = Frame.of(rows["R_tr"])
    lesson = {name: Lesson.of(labels, frame(x), facts[name]) for name, x in rows.items()}
    return true_bits(tuned(labels, lesson["R_tr"], lesson["R_va"]), lesson["F"])


def _lesson(
    labels: Labels, frame: Frame, rows: Rows, facts: Sequence[Fact], at: list[int]
) -> Lesson:
    return Lesson.of(labels, frame(rows[:, at]), [facts[i] for i in at])


def _blocks(facts: Sequence[Fact], seed: int) -> list[list[int]]:
    """Places of the facts of each block of entities."""
    subjects = sorted({f.subject for f in facts})
    order: Int[Tensor, " entity"] = torch.from_numpy(
        np.random.default_rng(seed).permutation(len(subjects))
    )
    ends = [math.ceil(share * len(subjects)) for share in SHARES]
    block_of = {
        subjects[int(entity)]: int(np.searchsorted(ends, rank, side="right"))
        for rank, entity in enumerate(order)
    }
    blocks: list[list[int]] = [[] for _ in SHARES]
    for i, fact in enumerate(facts):
        blocks[block_of[fact.subject]].append(i)
    return blocks
