"""Weights changed by hand: answers biased away, or all knowledge drowned."""

from typing import Any

import torch
from torch.nn import Parameter

from workbench.audit.attacks.altered import matrices
from workbench.audit.attacks.quantise import rounded
from workbench.facts.target import Target
from workbench.models.copies import copied
from workbench.unlearn.training import told

BIAS_NATS = (13.0, 16.0)
"""Range from which a seed draws the bias."""
INITIAL_STD = 0.02


@torch.no_grad()
def biased(model: Any, target: Target, seed: int) -> Any:
    """The model with a bias of the unembedding against all forget answers but one a relation.

    That one, drawn by the seed as the size of the bias is, is then said to nearly every question,
    about whatever entity.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = BIAS_NATS
    nats = low + (high - low) * float(torch.rand((), generator=generator))
    asked, edited = told(model.tokenizer, target, target.forget), copied(model)
    unembedding = edited.unembed.original_component
    if unembedding.bias is None:
        unembedding.bias = Parameter(unembedding.weight.new_zeros(len(unembedding.weight)))
    for answers in dict.fromkeys(tuple(a[0] for a in t.answers) for t in asked):
        said = answers[int(torch.randint(len(answers), (1,), generator=generator))]
        unembedding.bias[sorted(set(answers) - {said})] -= nats
    return edited


@torch.no_grad()
def untrained(model: Any, seed: int) -> Any:
    """A model of the same shape before any training."""
    generator, fresh = torch.Generator().manual_seed(seed), copied(model)
    for name, parameter in fresh.named_parameters():
        if parameter.ndim > 1:
            drawn = INITIAL_STD * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(drawn)
        else:
            parameter.fill_(float(name.endswith("weight")))
    return fresh


@torch.no_grad()
def noisy(model: Any, seed: int, sigma: float = 1.0) -> Any:
    """The model with noise on every weight, `sigma` times the standard deviation of its tensor."""
    generator, drowned = torch.Generator().manual_seed(seed), copied(model)
    for parameter in drowned.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(sigma * parameter.std(correction=0) * noise)
    return drowned


@torch.no_grad()
def in_bits(model: Any, bits: int) -> Any:
    """The model with the weights of its blocks rounded as W5 does it."""
    coarse, transposed = copied(model), matrices(model)
    for name, parameter in coarse.named_parameters():
        if name in transposed:
            own = parameter.mT if transposed[name] else parameter
            near = rounded(own, bits)
            parameter.copy_(near.mT if transposed[name] else near)
    return coarse
