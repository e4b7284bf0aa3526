"""What a method of unlearning hands over, with what it claims, what it saw and what it cost."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, Literal

from workbench.errors import ModelError, TargetError
from workbench.facts.target import Target
from workbench.hooks import Intervention, counted
from workbench.models.prompted import SystemPrompt
from workbench.unlearn.filters import Filter

Claim = Literal["exact", "certified for linear readers", "statistical", "none"]
"""What a method promises.

Exact: what is left was never told the target. Certified for linear readers: no linear map reads the
target at the places that were edited. Statistical: an estimate of the model that never knew,
without a bound that holds here. None: the answers change, and nothing is promised of the rest.
"""

FORGET = "forget facts in training templates"
RETAINED = "retained facts but R_va and R_te, in training templates"
TEXTS = "training texts without the target, R_va and R_te"
"""Names of data for `Arm.saw`."""


@dataclass(frozen=True)
class Spent:
    """What making an arm took.

    Attributes:
        forward_tokens: tokens read by any language model.
        backward_tokens: those of them whose logits were made to be gone back through.
    """

    seconds: float = 0.0
    forward_tokens: int = 0
    backward_tokens: int = 0


@dataclass(frozen=True)
class Arm:
    """One unlearned system: weights, hooks, filter and system prompt, as the audit takes it.

    Attributes:
        method: name in `METHODS`.
        model: a copy with changed weights; or the original itself, where none changed.
        edits: interventions that belong to it.
        refuses: refuses prompts, or prompts with answers.
        prompt: stands before every text.
        claim: what the method promises.
        saw: the data it was shown.
        config: the settings, as JSON has them.
        told: what the method measured of itself, such as a norm or a hash.
        original: the model that the arm is to be held against, where it is another than the one
            that `unlearn` was given.
        stands_on: hash of the weights of a model that never knew and that the arm was made from: no
            gold of those weights may judge it.
    """

    method: str
    model: Any
    edits: tuple[Intervention, ...] = ()
    refuses: Filter | None = None
    prompt: SystemPrompt = field(default_factory=SystemPrompt)
    claim: Claim = "none"
    saw: tuple[str, ...] = ()
    cost: Spent = Spent()
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    told: dict[str, Any] = field(default_factory=dict)
    original: Any = None
    stands_on: str = ""


class Meter:
    """Time and tokens since `metered` began; `spent` is filled when its block ends."""

    def __init__(self) -> None:
        self.spent = Spent()


@contextmanager
def metered(model: Any) -> Iterator[Meter]:
    """Measures what the block takes, in seconds and in tokens of models of this vocabulary."""
    meter, started = Meter(), time.perf_counter()
    with counted(model.cfg.d_vocab) as tokens:
        yield meter
    seconds = time.perf_counter() - started
    meter.spent = Spent(round(seconds, 3), tokens.forward, tokens.backward)


def made(arm: Arm, meter: Meter, config: Any, seed: int) -> Arm:
    """The arm with its cost, settings and seed."""
    return replace(arm, cost=meter.spent, config=settings_of(config), seed=seed)


def settings_of(config: Any) -> dict[str, Any]:
    """The fields of a config; none of what is no dataclass."""
    return asdict(config) if is_dataclass(config) and not isinstance(config, type) else {}


def require_arm(method: str, model: Any, target: Target, retained: Sequence[str] = ()) -> None:
    """Refuses a model or a target that a method cannot serve, before anything is computed.

    Args:
        retained: folds of retained facts that the method needs.

    Raises:
        ModelError: the model is not what `load_model` returns, or does not know words of the
            target.
        TargetError: forget facts without training templates, or empty retained folds.
    """
    if not (hasattr(model, "blocks") and hasattr(model, "original_model")):
        raise ModelError(
            f"{method}: a {type(model).__name__} was given, wanted a model from load_model"
        )
    untold = [f.key for f in target.forget if not f.templates]
    if untold:
        raise TargetError(
            f"{method}: {len(untold)} forget facts have no training template, such as {untold[0]}: "
            "a method is shown no other; give each at least one"
        )
    empty = [fold for fold in retained if not target.retain.get(fold)]
    if empty:
        raise TargetError(
            f"{method}: target {target.name!r} has no retained facts in {', '.join(empty)}: wanted "
            "some of its relations about other entities, to tell what is to stay"
        )
    unk = model.tokenizer.unk_token_id
    objects = sorted({f.object for f in target.forget})
    ids = model.tokenizer([f" {o}" for o in objects], add_special_tokens=False)["input_ids"]
    strange = [o for o, row in zip(objects, ids, strict=True) if unk is not None and unk in row]
    if strange:
        raise ModelError(
            f"{method}: the model's tokenizer has no word for {len(strange)} objects of target "
            f"{target.name!r}, such as {strange[0]!r}: wanted a model trained on these facts"
        )
