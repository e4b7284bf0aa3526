"""Needle: noise on the few value vectors of the MLPs that the forget answers come from."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import Parameter

from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.models.copies import copied
from workbench.unlearn.arm import FORGET, RETAINED, Arm, made, metered, require_arm
from workbench.unlearn.gradients import each_gradient, log_odds
from workbench.unlearn.training import HELD_OUT, Told, stays, told

NEAR = 2
"""How often the retained facts of the target's own relations are drawn beside once."""
FLOOR = 0.3
"""Share of the mean importance to retained facts that is added to each vector's, so that one which
matters to neither is not found by chance."""


@dataclass(frozen=True)
class Config:
    """How many value vectors are blurred, and how much.

    Attributes:
        k: vectors, over all layers.
        noise: standard deviation, in multiples of a vector's root mean square; 0 changes nothing.
        forget, retained: prompts on which the vectors are located.
    """

    k: int = 64
    noise: float = 1.0
    forget: int = 250
    retained: int = 500


DEFAULT = Config()
STRENGTHS = tuple(Config(noise=noise) for noise in (1.0, 1.25, 1.5))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Adds Gaussian noise to the value vectors that matter most to forget facts beside retained.

    What was looked up there is blurred for all that look there, so it forgets no more than what
    stands alone in its vectors.

    Source: Hong et al. 2024, arXiv 2406.11614, section 5 ("Needle"). Differs: there a person picks
    one vector by its words; here several are located, by activation × gradient.

    Raises:
        ModelError: MLPs without a matrix that writes to the stream, or fewer than k vectors.
    """
    require_arm("needle", model, target, ("R_tr",))
    with metered(model) as meter:
        blurred = copied(model).eval()
        writers = mlp_writers(blurred)
        rng = random.Random(str(seed))
        forget, retained = (
            attribution(blurred, rng.sample(found, min(size, len(found))))
            for found, size in (
                (told(model.tokenizer, target, target.forget), config.forget),
                (told(model.tokenizer, target, stays(target, HELD_OUT, NEAR)), config.retained),
            )
        )
        if not 0 <= config.k <= forget.numel():
            raise ModelError(
                f"needle: {config.k} value vectors wanted, and the model has {forget.numel()}"
            )
        found = located(forget, retained, config.k)
        blur(writers, found, config.noise, seed)
    vectors = {"value vectors": found.tolist()}
    arm = Arm("needle", blurred, saw=(FORGET, RETAINED), told=vectors)
    return made(arm, meter, config, seed)


def mlp_writers(model: Any) -> list[Any]:
    """The last matrix of each MLP, whose parts are the value vectors.

    Raises:
        ModelError: an MLP has none.
    """
    found = [getattr(getattr(b.mlp, "out", None), "original_component", None) for b in model.blocks]
    if any(getattr(getattr(w, "weight", None), "ndim", 0) != 2 for w in found):
        raise ModelError(
            f"{type(model.original_model).__name__} has an MLP without one matrix that writes to "
            "the stream: wanted a model without mixtures of experts"
        )
    return found


def value_vectors(writer: Any) -> Float[Tensor, "d_mlp d_model"]:
    """A view of the matrix with one value vector a row."""
    # GPT-2's Conv1D keeps its weight transposed: there a vector is a row already.
    return writer.weight if type(writer).__name__ == "Conv1D" else writer.weight.T


def attribution(model: Any, asked: Sequence[Told]) -> Float[Tensor, "layer d_mlp"]:
    """How much each value vector bears on a prompt's answer, on average.

    The size of activation × gradient of the answer's log-odds, to first order what the answer would
    lose or gain if the vector were nothing. It is read off the weights: the gradient in a vector
    is the activation times the gradient of the stream. Log-odds, since the log-probability of an
    answer that is sure is flat.
    """
    writers = mlp_writers(model)
    weights: list[Parameter] = [w.weight for w in writers]
    total = torch.zeros(len(writers), len(value_vectors(writers[0])), device=weights[0].device)
    for gradients in each_gradient(model, weights, asked, log_odds):
        effects = [
            (g * w).sum(1 if type(m).__name__ == "Conv1D" else 0)
            for g, w, m in zip(gradients, weights, writers, strict=True)
        ]
        total += torch.stack(effects).detach().abs() / len(asked)
    return total


def located(
    forget: Float[Tensor, "layer d_mlp"], retained: Float[Tensor, "layer d_mlp"], k: int
) -> Int[Tensor, "k 2"]:
    """Layer and index of the k vectors that matter most to forget facts beside retained ones."""
    score = forget / (retained + FLOOR * retained.mean())
    best = score.flatten().argsort(descending=True, stable=True)[:k].cpu()
    return torch.stack([best // forget.shape[1], best % forget.shape[1]], dim=1)


@torch.no_grad()
def blur(writers: Sequence[Any], vectors: Int[Tensor, "k 2"], noise: float, seed: int) -> None:
    """Adds noise to the vectors, in place."""
    generator = torch.Generator().manual_seed(seed)
    for layer, i in vectors.tolist():
        vector = value_vectors(writers[layer])[i]
        drawn = torch.randn(len(vector), generator=generator).to(vector)
        vector += noise * vector.square().mean().sqrt() * drawn
