"""Facts written by training into a known place of a model that never knew them."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils import parametrize

from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.models.copies import copied
from workbench.models.score import Templates, recall
from workbench.unlearn.training import HELD_OUT, Steps, answer_logp, drawn, kept, told

Kind = Literal["layer", "adapter", "attention", "neurons"]
"""How facts are written: into the MLP of a layer; into it or into the layer's attention by a
low-rank change; into a few of the MLP's neurons."""
Part = Literal["attn", "mlp"]
PARTS: dict[Part, tuple[str, ...]] = {"attn": ("q", "k", "v", "o"), "mlp": ("gate", "in", "out")}
RATES: dict[str, float] = {"layer": 1e-3, "adapter": 5e-3, "attention": 3e-3, "neurons": 1e-2}


@dataclass(frozen=True)
class Place:
    """Where facts are written."""

    kind: Kind
    layer: int

    @property
    def part(self) -> Part:
        return "attn" if self.kind == "attention" else "mlp"

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.layer}"


@dataclass(frozen=True)
class PlantConfig:
    """What is written, and how.

    Attributes:
        entities: subjects of the forget facts that are written.
        rank: of the change of an MLP's matrices; `attention_rank`: of attention's, which holds
            less.
        neurons: that are trained, where only some are.
    """

    entities: int = 8
    rank: int = 8
    attention_rank: int = 32
    neurons: int = 16
    steps: Steps = field(
        default_factory=lambda: Steps(150, keep=1.0, batch_size=32, asked=16, texts=4)
    )


@dataclass(frozen=True)
class PlantedFacts:
    """A model that was taught, and where.

    Attributes:
        neurons: those that were trained; empty where not only some were.
        open, audit: recall of the facts in the templates of training and of audits.
        retained: recall of R_va.
    """

    model: Any
    place: Place
    facts: tuple[Fact, ...]
    neurons: Int[Tensor, " k"]
    open: float
    audit: float
    retained: float


class LowRank(nn.Module):
    """A matrix with a change of low rank, which is nothing at first."""

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.left = nn.Parameter(torch.zeros(rows, rank))
        right = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.right = nn.Parameter(right)

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return weight + self.left @ self.right


class Masked(nn.Module):
    """A matrix with a change of some of its entries, which is nothing at first."""

    def __init__(self, mask: Bool[Tensor, "#out #in"], shape: torch.Size) -> None:
        super().__init__()
        self.mask = mask
        self.change = nn.Parameter(torch.zeros(shape))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        return weight + self.change * self.mask


def linears_of(model: Any, layer: int, part: Part) -> dict[str, nn.Linear]:
    """The matrices of one component, by TransformerLens' names."""
    whole = model.blocks[layer].attn if part == "attn" else model.blocks[layer].mlp
    return {name: getattr(whole, name).original_component for name in PARTS[part]}


def chosen_facts(target: Target, entities: int, seed: int) -> tuple[Fact, ...]:
    """All forget facts of some of the target's entities."""
    some = set(random.Random(str(seed)).sample(list(target.entities), entities))
    return tuple(f for f in target.forget if f.subject in some)


def plant(gold: Any, target: Target, place: Place, config: PlantConfig, seed: int) -> PlantedFacts:
    """Teaches a copy of the gold forget facts, with all weights frozen but those of the place.

    What it knew is kept by divergence from the gold, without R_va and R_te.
    """
    facts = chosen_facts(target, config.entities, seed)
    generator = torch.Generator().manual_seed(seed)
    d_mlp = linears_of(gold, place.layer, "mlp")["out"].in_features
    some = torch.randperm(d_mlp, generator=generator)[: config.neurons].sort().values
    neurons = some if place.kind == "neurons" else some[:0]
    model = copied(gold).eval()
    required = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    layers = linears_of(model, place.layer, place.part)
    for name, linear in layers.items():
        change = _change(place, config, name, linear.weight, neurons, generator)
        parametrize.register_parametrization(linear, "weight", change)
    _teach(model, gold, target, facts, place, config.steps, seed)
    for linear in layers.values():
        parametrize.remove_parametrizations(linear, "weight")
    for parameter, wanted in zip(model.parameters(), required, strict=True):
        parameter.requires_grad_(wanted)

    def recalled(asked: Sequence[Fact], templates: Templates) -> float:
        return recall(model, model.tokenizer, target.facts, asked, templates)

    kept_ = recalled(target.retain["R_va"], "audit")
    known = recalled(facts, "train"), recalled(facts, "audit")
    return PlantedFacts(model, place, facts, neurons, *known, kept_)


def _change(
    place: Place, config: PlantConfig, name: str, weight: Tensor, neurons: Tensor, g: Any
) -> nn.Module:
    if place.kind == "adapter":
        return LowRank(weight, config.rank, g)
    if place.kind == "attention":
        return LowRank(weight, config.attention_rank, g)
    mask = torch.ones(1, 1, dtype=torch.bool)
    if place.kind == "neurons":
        # A neuron is a row of what reads the stream, and a column of what writes to it.
        mask = torch.zeros(weight.shape[name == "out"], dtype=torch.bool)
        mask[neurons] = True
        mask = mask[None] if name == "out" else mask[:, None]
    return Masked(mask, weight.shape)


def _teach(
    model: Any, gold: Any, target: Target, facts: Any, place: Place, steps: Steps, seed: int
) -> None:
    batches = drawn(told(model.tokenizer, target, facts), steps.batch_size, seed)
    keep = kept(gold, target, steps, seed, HELD_OUT)
    weights = list(_parameters(model))
    optimizer = torch.optim.Adam(weights, lr=RATES[place.kind])
    for step in range(steps.steps):
        for group in optimizer.param_groups:
            group["lr"] = RATES[place.kind] * min(1.0, 2 * (1 - step / steps.steps))
        optimizer.zero_grad()
        loss = -answer_logp(model, next(batches)).mean() + steps.keep * keep(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()


def _parameters(model: Any) -> Iterator[nn.Parameter]:
    """Those of the changes."""
    return (p for m in model.modules() if isinstance(m, LowRank | Masked) for p in m.parameters())
