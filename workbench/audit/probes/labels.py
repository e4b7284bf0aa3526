"""What probes are to say: the objects of facts, as numbers among their relation's candidates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.facts.schema import Fact
from workbench.facts.target import Target


@dataclass(frozen=True)
class Grid:
    """Facts laid out by relation, short relations filled up.

    Attributes:
        index: the fact at each place of the grid; 0 where there is none.
        real: whether there is one.
    """

    index: Int[Tensor, "relation row"]
    real: Bool[Tensor, "relation row"]

    def gathered(
        self, x: Float[Tensor, "place fact feature"]
    ) -> Float[Tensor, "problem row feature"]:
        """One problem per place and relation."""
        if not x.shape[1]:
            return x.new_zeros(len(x) * len(self.index), self.index.shape[1], x.shape[2])
        return x[:, self.index].flatten(0, 1)

    def scattered(
        self, values: Float[Tensor, "problem row k"], facts: int
    ) -> Float[Tensor, "place fact k"]:
        """Back from problems to facts."""
        by_place = values.unflatten(0, (-1, len(self.index)))
        out = values.new_zeros(len(by_place), facts, values.shape[-1])
        out[:, self.index[self.real]] = by_place[:, self.real]
        return out


@dataclass(frozen=True)
class Labels:
    """The relations of a target's forget facts, and their candidates.

    Attributes:
        allowed: which of the k columns each relation has.
    """

    relations: tuple[str, ...]
    candidates: tuple[tuple[str, ...], ...]
    allowed: Bool[Tensor, "relation k"]

    @classmethod
    def of(cls, target: Target) -> "Labels":
        relations = tuple(sorted({f.relation for f in target.forget}))
        candidates = tuple(target.facts.relation[name].candidates for name in relations)
        sizes = torch.tensor([len(c) for c in candidates])
        return cls(relations, candidates, torch.arange(int(sizes.max())) < sizes[:, None])

    def relation_of(self, facts: Sequence[Fact]) -> Int[Tensor, " fact"]:
        return torch.tensor([self.relations.index(f.relation) for f in facts], dtype=torch.long)

    def objects(self, facts: Sequence[Fact]) -> Int[Tensor, " fact"]:
        """Each fact's object among its relation's candidates."""
        known = dict(zip(self.relations, self.candidates, strict=True))
        return torch.tensor([known[f.relation].index(f.object) for f in facts], dtype=torch.long)

    def grid(self, facts: Sequence[Fact]) -> Grid:
        relation = self.relation_of(facts)
        members = [torch.nonzero(relation == r)[:, 0] for r in range(len(self.relations))]
        rows = max(1, *(len(m) for m in members))
        index = torch.stack([torch.nn.functional.pad(m, (0, rows - len(m))) for m in members])
        real = torch.arange(rows) < torch.tensor([len(m) for m in members])[:, None]
        return Grid(index, real)

    def prior(self, facts: Sequence[Fact]) -> Float[Tensor, "relation k"]:
        """How common each object is among these facts, with one more of each."""
        counts = self.allowed.float()
        if facts:
            where = self.relation_of(facts) * counts.shape[1] + self.objects(facts)
            counts += torch.bincount(where, minlength=counts.numel()).view_as(counts)
        return counts / counts.sum(1, keepdim=True)

    def entropy_bits(self, facts: Sequence[Fact]) -> Float[Tensor, " relation"]:
        """Of the prior over these facts' objects."""
        prior = self.prior(facts)
        return -torch.special.xlogy(prior, prior).sum(1) / np.log(2)

    def controls(
        self, facts: Sequence[Fact], retained: Sequence[Fact], draw: tuple[int, int]
    ) -> Int[Tensor, " fact"]:
        """A random answer for each fact, drawn from the prior over the retained facts' objects.

        It depends on the fact's subject and relation and on the draw, on nothing else.
        """
        rng, prior = np.random.default_rng(draw), self.prior(retained).double().numpy()
        answers = {}
        for relation, name in enumerate(self.relations):
            p = prior[relation] / prior[relation].sum()
            for subject in sorted({f.subject for f in facts}):
                answers[subject, name] = int(rng.choice(len(p), p=p))
        return torch.tensor([answers[f.key] for f in facts], dtype=torch.long)
