"""FT-L: one MLP's output matrix goes down towards the aim, no weight further than a bound."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import EditError
from workbench.facts.target import Target
from workbench.models.score import device_of, next_logits
from workbench.unlearn.arm import FORGET, Arm, made, metered, require_arm
from workbench.unlearn.descent import forget_batches
from workbench.unlearn.editing import a_third, frozen, thawed, writer
from workbench.unlearn.training import Told, prompts
from workbench.unlearn.values import Aim, aims_of


@dataclass(frozen=True)
class Config:
    """How long, and how far.

    Attributes:
        bound: largest change of a weight.
        layer: the one whose matrix changes; about a third of the depth if None.
        aim: what is to be answered, see `values.Aim`.
        batch_size: forget prompts in a step.
    """

    bound: float = 1e-2
    layer: int | None = None
    aim: Aim = "neutral"
    steps: int = 60
    lr: float = 2e-3
    batch_size: int = 64


DEFAULT = Config()
STRENGTHS = tuple(replace(DEFAULT, bound=b) for b in (5e-3, 1e-2, 2e-2))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Has the forget prompts answered by the aim; the bound alone keeps the rest.

    All tokens of an answer are scored at the prompt's last position, as published: with answers of
    several tokens, those after the first are never trained where they stand. `ft_m` mends that.

    Source: Zhu et al. 2020, arXiv 2012.00363, eq. 4; as FT+L in Meng et al. 2022, arXiv 2202.05262.
    Differs: all forget facts at once in batches, not one after another.
    """
    require_arm("ft_l", model, target)
    if not config.bound > 0:
        raise EditError(f"ft_l: bound {config.bound:g}: wanted a number above 0")
    layer = a_third(model, config.layer)
    writer(model, layer)
    with metered(model) as meter:
        now = frozen(model)
        weight = writer(now, layer).weight.requires_grad_(True)
        start = weight.detach().clone()
        optimizer = torch.optim.Adam([weight], lr=config.lr)
        batches = forget_batches(now, target, config.batch_size, seed)
        for _ in tqdm(range(config.steps), desc="change weights", unit="step", leave=False):
            optimizer.zero_grad()
            at_last_position(now, next(batches), config.aim).backward()
            optimizer.step()
            with torch.no_grad():
                weight.copy_(start + (weight - start).clamp(-config.bound, config.bound))
        optimizer.zero_grad()
    far = (weight.detach() - start).abs()
    told = {"layer": layer, "at_bound": (far >= 0.99 * config.bound).double().mean().item()}
    return made(Arm("ft_l", thawed(now, model), saw=(FORGET,), told=told), meter, config, seed)


def at_last_position(now: Any, batch: list[Told], aim: Aim) -> Float[Tensor, ""]:
    """Cross-entropy of all answers' tokens after the prompt alone; answers aimed at weigh alike."""
    device = device_of(now)
    logp = next_logits(now, prompts(batch, device))[:, -1].float().log_softmax(-1)
    total = logp.new_zeros(())
    for row, told in zip(logp, batch, strict=True):
        answers = aims_of(told, aim)
        total = total - row[[token for a in answers for token in a]].sum() / len(answers)
    return total / len(batch)
