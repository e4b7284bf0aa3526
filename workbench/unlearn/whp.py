"""Who's Harry Potter: trained on what a model would say that had learned the facts less."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from workbench.facts.target import Target
from workbench.models.score import device_of, next_logits
from workbench.unlearn.arm import Arm, made, metered, require_arm
from workbench.unlearn.descent import descended
from workbench.unlearn.task_vector import reinforced
from workbench.unlearn.training import Steps, Told, prompts


@dataclass(frozen=True)
class Config:
    """How the facts are learned once more, and how the model is then trained.

    Attributes:
        alpha: how much of what learning them raised is taken off; 0 changes nothing.
        learn: steps of learning, of which nothing is kept but what they raise.
        steps: of training the model on the generic prediction.
        weight: of the generic prediction, beside `steps.keep` of keeping.
    """

    alpha: float = 20.0
    learn: Steps = field(default_factory=lambda: Steps(40, 3e-4, keep=0.0))
    steps: Steps = field(default_factory=lambda: Steps(100, 1e-3, keep=3.0, near=4))
    weight: float = 1.0


DEFAULT = Config()
STRENGTHS = tuple(replace(DEFAULT, alpha=a) for a in (5.0, 20.0, 50.0))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Teaches the model to say of forget facts what is left when their own trace is taken off.

    Source: Eldan and Russinovich 2023, arXiv 2310.02238, eq. 1. Differs: the whole prediction is
    taught, at the answer's tokens, in place of its likeliest token in running text; names are not
    replaced by other names first; the rest is kept. The variant of MUSE changes logits as the model
    is used; here the weights hold it.
    """
    require_arm("whp", model, target, ("R_tr",) if config.steps.keep > 0 else ())
    with metered(model) as meter:
        strong = reinforced(model, target, config.learn, seed)

        def forget(now: Any, batch: list[Told]) -> Float[Tensor, ""]:
            tokens, length = prompts(batch, device_of(now), answered=True), len(batch[0].answer)
            with torch.no_grad():
                wanted = generic(
                    _at_answer(model, tokens, length),
                    _at_answer(strong, tokens, length),
                    config.alpha,
                )
            found = _at_answer(now, tokens, length).log_softmax(-1).flatten(0, 1)
            wanted = wanted.log_softmax(-1).flatten(0, 1)
            return functional.kl_div(found, wanted, log_target=True, reduction="batchmean")

        arm = descended("whp", model, target, config, seed, forget)
    return made(arm, meter, config, seed)


def generic(
    base: Float[Tensor, "*batch vocab"], strong: Float[Tensor, "*batch vocab"], alpha: float
) -> Float[Tensor, "*batch vocab"]:
    """The base's logits, less alpha times what the reinforced model raised."""
    return base - alpha * (strong - base).relu()


def _at_answer(model: Any, tokens: Tensor, length: int) -> Float[Tensor, "n pos vocab"]:
    """Logits from which the answer's tokens are read."""
    return next_logits(model, tokens)[:, -length - 1 : -1].float()
