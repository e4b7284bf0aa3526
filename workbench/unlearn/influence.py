"""Influence functions: weights as they would be, to first order, without the forget facts."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.facts.target import Target
from workbench.models.copies import copied
from workbench.models.score import device_of
from workbench.unlearn.arm import FORGET, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.ekfac import (
    Factors,
    add_matrix,
    as_matrix,
    fit_factors,
    linears,
    plain_module,
    require_kronfluence,
)
from workbench.unlearn.gradients import mean_gradient
from workbench.unlearn.training import HELD_OUT, Told, kept_texts, told


@dataclass(frozen=True)
class Config:
    """How far the weights are moved.

    Attributes:
        scale: of the step, in multiples of the formula's.
        damping: added to the curvature of each matrix, in multiples of its mean.
        samples: texts on which the curvature is measured.
    """

    scale: float = 0.02
    damping: float = 0.01
    samples: int = 600


DEFAULT = Config()
STRENGTHS = tuple(Config(scale) for scale in (0.01, 0.02, 0.025))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """One step of Newton's method from the minimum of all data to that of all but the forget facts.

    θ + scale/n · Σ (H + damping)⁻¹ ∇ loss over forget prompts, n training texts and forget prompts
    in all. H is the Gauss-Newton matrix of the loss per training text, on texts that stay, by
    EK-FAC for each matrix of the MLPs. Where facts are known by heart the loss is flat, and the
    formula's own step (scale 1) leaves the range in which it holds and destroys the model: the
    scale is part of the method. Several steps with gradients taken anew forget more of what is to
    stay for the same forgetting, so there is one.

    Source: Koh and Liang 2017, arXiv 1703.04730, eq. 1, with the curvature of what stays as in Guo
    et al. 2019, arXiv 1911.03030, eq. 3. Differs: MLPs alone; scale; the forget loss is that of
    the answer.

    Raises:
        ModelError: kronfluence is not installed.
    """
    require_arm("influence", model, target)
    require_kronfluence()
    with metered(model) as meter:
        moved = copied(model).eval()
        layers = linears(moved)
        texts = kept_texts(target, HELD_OUT)
        chosen = random.Random(str(seed)).sample(texts, min(config.samples, len(texts)))
        tokens, real = padded(model, chosen)
        factors = fit_factors(plain_module(model), list(layers), tokens, real, seed)
        forget = told(model.tokenizer, target, target.forget)
        share = len(forget) / (len(texts) + len(forget))
        gradients = loss_gradients(moved, layers, forget)
        steps = preconditioned(gradients, factors, config.scale * share, config.damping)
        for name, change in steps.items():
            add_matrix(layers[name], change)
    norm = float(sum(s.double().square().sum() for s in steps.values())) ** 0.5
    arm = Arm(
        "influence",
        moved,
        claim="statistical",
        saw=(FORGET, TEXTS),
        told={"step norm": norm, "forget share": share},
    )
    return made(arm, meter, config, seed)


def preconditioned(
    gradients: Mapping[str, Float[Tensor, "_ _"]],
    factors: Mapping[str, Factors],
    scale: float,
    damping: float,
) -> dict[str, Float[Tensor, "_ _"]]:
    """Scale · (H + damping · mean curvature)⁻¹ gradient of each matrix."""
    return {n: scale * factors[n].divided(g, damping) for n, g in gradients.items()}


def loss_gradients(
    model: Any, layers: Mapping[str, Any], asked: Sequence[Told]
) -> dict[str, Float[Tensor, "_ _"]]:
    """Gradient of the prompts' mean loss in their answers, of each layer as a matrix."""
    weights = [p for layer in layers.values() for p in layer.parameters()]
    found = {id(w): -g for w, g in zip(weights, mean_gradient(model, weights, asked), strict=True)}
    return {
        name: as_matrix(layer, found[id(layer.weight)], found.get(id(layer.bias))).float()
        for name, layer in layers.items()
    }


def padded(model: Any, texts: Sequence[str]) -> tuple[Int[Tensor, "n pos"], Bool[Tensor, "n pos"]]:
    """Tokens of the texts, filled up at the end, and which of them are real."""
    rows = model.tokenizer(list(texts))["input_ids"]
    longest = max(map(len, rows))
    tokens = [[*row, *[0] * (longest - len(row))] for row in rows]
    real = [[i < len(row) for i in range(longest)] for row in rows]
    device = device_of(model)
    return torch.tensor(tokens, device=device), torch.tensor(real, device=device)
