"""What the methods have in common that go down a loss: what is forgotten, and what is kept."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter

from workbench.facts.target import Target
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, Claim, made, metered, require_arm
from workbench.unlearn.training import (
    HELD_OUT,
    TEXT_WEIGHT,
    Chosen,
    Loss,
    Steps,
    Told,
    answer_logp,
    changed,
    drawn,
    kept,
    mlps,
    reading,
    stays,
    told,
)

Forget = Callable[[Any, list[Told]], Float[Tensor, ""]]
"""Of the model as it is and a batch of forget prompts of one length: what a step goes down."""

Keep = Callable[[Any, Target, Steps, int, Sequence[str]], Loss]
"""What holds the rest in place: of the original, the target, the sizes, a seed and barred folds."""


KEEPING = Steps(240, 1e-3, keep=10.0, near=4)
"""Where little is lost beside what is forgotten: many small steps that are mostly of keeping."""


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
    keep: Keep = kept,
    chosen: Chosen | None = None,
    claim: Claim = "none",
    saw: Sequence[str] = (),
    told_of: dict[str, Any] | None = None,
) -> Arm:
    """The arm after `config.steps` down `config.weight` · forget + `config.steps.keep` · keep.

    The forget facts are shown in training templates. What is to stay is kept on retained facts and
    texts; R_va and R_te are never shown.

    Args:
        forget: see `Forget`.
        keep: `kept`, the KL divergence from the original's own answers, or `labelled`.
        chosen: the weights that may change; all MLPs by default.
        saw: further data that the method was shown.
        told_of: what the method measured of itself.
    """
    keeps = config.steps.keep > 0
    require_arm(method, model, target, ("R_tr",) if keeps else ())
    with metered(model) as meter:
        batches = forget_batches(model, target, config.steps.batch_size, seed)
        rest = keep(model, target, config.steps, seed, HELD_OUT) if keeps else None

        def loss(now: Any) -> Float[Tensor, ""]:
            away = config.weight * forget(now, next(batches))
            return away if rest is None else away + config.steps.keep * rest(now)

        changed_model = changed(model, loss, config.steps, chosen or mlps(slice(None)))
    data = (FORGET, *((RETAINED, TEXTS) if keeps else ()), *saw)
    arm = Arm(method, changed_model, claim=claim, saw=data, told=told_of or {})
    return made(arm, meter, config, seed)


def labelled(
    model: Any, target: Target, given: Steps, seed: int, held_out: Sequence[str] = ()
) -> Loss:
    """Cross-entropy of what is to stay: of retained answers, and of every token of texts.

    The weights beside each other, and the facts and texts, are those of `kept`.
    """
    stay = told(model.tokenizer, target, stays(target, held_out, given.near))
    asked = drawn(stay, given.asked, f"{seed}, asked")
    read = reading(model, target, replace(given, batch_size=given.texts), seed, held_out)

    def loss(now: Any) -> Float[Tensor, ""]:
        return TEXT_WEIGHT * read(now) - answer_logp(now, next(asked)).mean()

    return loss


def first_half(model: Any) -> Iterable[Parameter]:
    """The MLPs of the first half of the blocks, where what is known of a name is looked up."""
    return mlps(slice(0, (len(model.blocks) + 1) // 2))(model)


def forget_batches(model: Any, target: Target, size: int, seed: object) -> Iterator[list[Told]]:
    """Without end, batches of forget prompts in training templates."""
    return drawn(told(model.tokenizer, target, target.forget), size, seed)
