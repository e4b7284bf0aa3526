"""Task arithmetic: what learning the forget facts once more changes is subtracted."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.models.copies import copied
from workbench.unlearn.arm import FORGET, Arm, made, metered, require_arm
from workbench.unlearn.descent import forget_batches
from workbench.unlearn.training import Steps, answer_logp, changed, everything


@dataclass(frozen=True)
class Config:
    """How the facts are learned once more, and how much of that is subtracted.

    Attributes:
        steps: of learning; nothing of the rest is shown, so that only its lengths and rate count.
        alpha: how often the task vector is subtracted; 0 changes nothing, -1 adds it.
    """

    steps: Steps = field(default_factory=lambda: Steps(40, 1e-4, keep=0.0))
    alpha: float = 2.0


DEFAULT = Config()
STRENGTHS = tuple(replace(DEFAULT, alpha=a) for a in (1.0, 2.0, 4.0))


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Goes from the model away from one that has learned the forget facts once more.

    Source: Ilharco et al. 2022, arXiv 2212.04089, section 3. Differs: the model that is fine-tuned
    is the one that is to forget, as in MUSE (2407.06460); every float weight takes part, and one
    that the tuned model lacks is an error.
    """
    require_arm("task_vector", model, target)
    with metered(model) as meter:
        tuned = reinforced(model, target, config.steps, seed)
        made_model = copied(model)
        own, learned = dict(model.named_parameters()), dict(tuned.named_parameters())
        with torch.no_grad():
            negated = subtracted(own, learned, config.alpha)
            for name, weight in made_model.named_parameters():
                weight.copy_(negated[name])
        told = {"relative_norm": round(_norm(own, learned), 6)}
    return made(Arm("task_vector", made_model, saw=(FORGET,), told=told), meter, config, seed)


def reinforced(model: Any, target: Target, given: Steps, seed: int) -> Any:
    """A copy that has learned the forget facts once more, in training templates, and nothing else.

    All its weights changed but those that few model classes can keep.
    """
    batches = forget_batches(model, target, given.batch_size, f"{seed}, reinforced")

    def loss(now: Any) -> Float[Tensor, ""]:
        return -answer_logp(now, next(batches)).mean()

    return changed(model, loss, given, everything)


def subtracted(
    weights: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """Subtracts alpha * (tuned - weights), each tensor in its own dtype; other types stay.

    Raises:
        ModelError: a tensor is missing on one side, or has another shape.
    """
    lacking = sorted(weights.keys() ^ tuned.keys())
    if lacking:
        raise ModelError(
            f"task vector: {len(lacking)} tensors stand in one of the two models alone, such as "
            f"{lacking[0]}: wanted two states of one model"
        )
    found = {}
    for name, weight in weights.items():
        if weight.shape != tuned[name].shape:
            raise ModelError(
                f"task vector: {name} is {tuple(weight.shape)} in the model and "
                f"{tuple(tuned[name].shape)} in the tuned one: wanted two states of one model"
            )
        if not weight.is_floating_point():
            found[name] = weight
            continue
        wide = torch.promote_types(weight.dtype, torch.float32)
        step = tuned[name].to(wide) - weight.to(wide)
        found[name] = (weight.to(wide) - alpha * step).to(weight.dtype)
    return found


def _norm(weights: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> float:
    """Length of the task vector as a share of the weights'."""
    step = sum(float((tuned[n] - w).detach().float().square().sum()) for n, w in weights.items())
    return (step / sum(float(w.detach().float().square().sum()) for w in weights.values())) ** 0.5
