"""What the methods have in common that go down a loss: what is forgotten, and what is kept."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from workbench.facts.target import Target
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, Claim, made, metered, require_arm
from workbench.unlearn.training import (
    HELD_OUT,
    Chosen,
    Steps,
    Told,
    changed,
    drawn,
    kept,
    mlps,
    told,
)

Forget = Callable[[Any, list[Told]], Float[Tensor, ""]]
"""Of the model as it is and a batch of forget prompts of one length: what a step goes down."""


@dataclass(frozen=True)
class DescentConfig:
    """How long and how hard weights are changed.

    Attributes:
        steps: with weight, rate and sizes of what is kept. `keep` 0 keeps nothing.
        weight: of forgetting, beside `steps.keep` of keeping.
    """

    steps: Steps = field(default_factory=Steps)
    weight: float = 1.0


def descended(
    method: str,
    model: Any,
    target: Target,
    config: Any,
    seed: int,
    forget: Forget,
    *,
    chosen: Chosen | None = None,
    claim: Claim = "none",
    saw: Sequence[str] = (),
    told_of: dict[str, Any] | None = None,
) -> Arm:
    """The arm after `config.steps` down `config.weight` · forget + `config.steps.keep` · keep.

    The forget facts are shown in training templates. What is kept is how the model's own answers
    move (KL divergence), on retained facts and texts; R_va and R_te are never shown.

    Args:
        forget: see `Forget`.
        chosen: the weights that may change; all MLPs by default.
        saw: further data that the method was shown.
        told_of: what the method measured of itself.
    """
    keeps = config.steps.keep > 0
    require_arm(method, model, target, ("R_tr",) if keeps else ())
    with metered(model) as meter:
        batches = forget_batches(model, target, config.steps.batch_size, seed)
        keep = kept(model, target, config.steps, seed, HELD_OUT) if keeps else None

        def loss(now: Any) -> Float[Tensor, ""]:
            away = config.weight * forget(now, next(batches))
            return away if keep is None else away + config.steps.keep * keep(now)

        changed_model = changed(model, loss, config.steps, chosen or mlps(slice(None)))
    data = (FORGET, *((RETAINED, TEXTS) if keeps else ()), *saw)
    arm = Arm(method, changed_model, claim=claim, saw=data, told=told_of or {})
    return made(arm, meter, config, seed)


def forget_batches(model: Any, target: Target, size: int, seed: object) -> Iterator[list[Told]]:
    """Without end, batches of forget prompts in training templates."""
    return drawn(told(model.tokenizer, target, target.forget), size, seed)
