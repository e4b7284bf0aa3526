"""Collapse of irrelevant representations: forgetting outside the directions that all share."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from workbench.errors import ModelError
from workbench.facts.target import Target
from workbench.hooks.places import Place
from workbench.models.copies import copied
from workbench.models.score import device_of, next_logits
from workbench.unlearn.arm import FORGET, RETAINED, TEXTS, Arm, made, metered, require_arm
from workbench.unlearn.descent import forget_batches
from workbench.unlearn.streams import from_subject, mlp_output, require_outputs
from workbench.unlearn.training import HELD_OUT, Steps, Told, kept, prompts

DEPTH = 1 / 2
"""Of the layers, the first whose MLPs are broken: facts are looked up there."""
PASSES = 8
"""Batches of forget prompts whose activations and gradients tell what is common."""


@dataclass(frozen=True)
class Config:
    """How much is collapsed, and how hard the rest is changed.

    Attributes:
        steps: `keep` weighs what keeps retained knowledge; 0 keeps nothing.
        components: principal components that are collapsed beside the mean, of the activations and
            as many of the gradients of each matrix.
        weight: of breaking what MLPs write.
    """

    steps: Steps = field(default_factory=lambda: Steps(120, 2e-3, keep=10.0, near=1))
    components: int = 12
    weight: float = 1.0


DEFAULT = Config()
STRENGTHS = tuple(replace(DEFAULT, weight=w) for w in (1.0, 3.0, 10.0))


@dataclass(frozen=True)
class Common:
    """What the prompts have in common at one matrix: orthonormal directions, as columns.

    Attributes:
        read: of its activations, the inputs.
        written: of the gradients of the loss by its outputs.
        turned: whether the weight is stored as inputs by outputs, as in GPT-2.
    """

    read: Float[Tensor, "d_in k"]
    written: Float[Tensor, "d_out n"]
    turned: bool = False

    def collapsed(self, change: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """The change of the weight that would come from collapsed activations and gradients.

        It is the sum over tokens of gradient times activation, so that collapsing both before and
        projecting it after are one.
        """
        left, right = (self.read, self.written) if self.turned else (self.written, self.read)
        found = change.float()
        found = found - left @ (left.T @ found)
        return (found - (found @ right) @ right.T).to(change)


def unlearn(model: Any, target: Target, config: Config = DEFAULT, seed: int = 0) -> Arm:
    """Breaks what MLPs write for forget prompts, by changes that leave common directions alone.

    No matrix is changed in how it reads the directions that forget prompts have in common, nor in
    what it writes to those that their gradients have in common.

    Source: Sondej and Yang 2025, arXiv 2509.11816, section 3. Differs: the directions are found
    once, on the original, and not anew each epoch; collapsed steps are Adam's, projected again; the
    rest is kept by divergence of what the model says, in steps that are collapsed as well.

    Raises:
        ModelError: MLPs without an output matrix, or too narrow for so many components.
    """
    keeps = config.steps.keep > 0
    require_arm("cir", model, target, ("R_tr",) if keeps else ())
    require_outputs("cir", model)
    steps = config.steps
    with metered(model) as meter:
        now = copied(model).eval()
        matrices = mlp_matrices(now)
        batches = forget_batches(model, target, steps.batch_size, seed)
        with _only(now, matrices):
            common = found_common(model, now, batches, config.components)
            keep = kept(model, target, steps, seed, HELD_OUT) if keeps else None

            def loss() -> Float[Tensor, ""]:
                away = config.weight * broken(model, now, next(batches))
                return away if keep is None else away + steps.keep * keep(now)

            _descend(matrices, common, loss, steps)
    saw = (FORGET, *((RETAINED, TEXTS) if keeps else ()))
    told = {"matrices": len(matrices), "components": config.components}
    return made(Arm("cir", now, saw=saw, told=told), meter, config, seed)


def mlp_matrices(model: Any) -> dict[str, Any]:
    """The linear layers of the MLPs that are broken, by block and name."""
    # Hugging Face's transposed linear layer is told by its name.
    found = {
        f"{i}.{name}": module
        for i, block in enumerate(_early(model))
        for name, module in block.mlp.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    by_weight = {id(module.weight): (name, module) for name, module in found.items()}
    return dict(by_weight.values())


def _early(model: Any) -> Any:
    return model.blocks[: math.ceil(DEPTH * len(model.blocks))]


def broken(before: Any, now: Any, batch: list[Told]) -> Float[Tensor, ""]:
    """How much of what MLPs wrote from the subject on is still written, 1 before and 0 at best."""
    tokens = prompts(batch, device_of(now))
    here = from_subject(batch, tokens.device)
    with torch.no_grad(), _written(before) as then:
        next_logits(before, tokens)
    with _written(now) as found:
        next_logits(now, tokens)
    shares = []
    for was, became in zip(then, found, strict=True):
        old, new = was[here].float(), became[here].float()
        along = (new * old).sum(-1) / old.square().sum(-1).mean()
        shares.append(along.relu().mean())
    return torch.stack(shares).mean()


def found_common(
    before: Any, now: Any, batches: Iterator[list[Told]], components: int
) -> dict[str, Common]:
    """What forget prompts have in common at each matrix of `now`, whose weights need gradients.

    Raises:
        ModelError: a matrix has no more dimensions than are to be collapsed.
    """
    matrices = mlp_matrices(now)
    read: dict[str, list[Tensor]] = {name: [] for name in matrices}
    written: dict[str, list[Tensor]] = {name: [] for name in matrices}
    for _ in range(PASSES):
        ins, outs = {}, {}
        with ExitStack() as leaving:
            for name, module in matrices.items():
                places = (Place(module, "input"), ins), (Place(module), outs)
                for place, taken in places:
                    leaving.callback(place.attach(_taker(taken, name)).remove)
            loss = broken(before, now, next(batches))
        grads = torch.autograd.grad(loss, list(outs.values()))
        for name, grad in zip(outs, grads, strict=True):
            # The first token is the same in all texts.
            read[name].append(ins[name][:, 1:].detach().flatten(0, 1).float())
            written[name].append(grad[:, 1:].flatten(0, 1).float())
    return {
        name: Common(
            directions(torch.cat(read[name]), components),
            directions(torch.cat(written[name]), components),
            type(module).__name__ == "Conv1D",
        )
        for name, module in matrices.items()
    }


def directions(rows: Float[Tensor, "tokens d"], components: int) -> Float[Tensor, "d k"]:
    """The mean direction and the principal components of rows, orthonormal, as columns.

    Rows that span fewer directions give fewer.

    Raises:
        ModelError: the rows have no more dimensions than that.
    """
    if components + 1 >= rows.shape[1]:
        raise ModelError(
            f"cir: {components} components and the mean were to be collapsed of {rows.shape[1]} "
            "dimensions, which leaves nothing to change: wanted fewer components"
        )
    mean = rows.mean(0)
    _, sizes, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    real = sizes[:components] > 1e-6 * rows.norm()
    stacked = torch.cat([functional.normalize(mean, dim=0)[None], axes[:components][real]])
    basis, triangle = torch.linalg.qr(stacked.T)
    return basis[:, triangle.diagonal().abs() > 1e-4]


def _descend(matrices: dict[str, Any], common: dict[str, Common], loss: Any, given: Steps) -> None:
    """Steps down the loss; the whole change of each matrix stays collapsed."""
    weights = {name: module.weight for name, module in matrices.items()}
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    optimizer = torch.optim.AdamW(
        weights.values(), lr=given.lr, weight_decay=0.0, betas=(0.9, 0.98)
    )
    for step in tqdm(range(given.steps), desc="change weights", unit="step", leave=False):
        for group in optimizer.param_groups:
            group["lr"] = given.lr * (1 - step / given.steps)
        optimizer.zero_grad()
        loss().backward()
        for name, weight in weights.items():
            weight.grad = common[name].collapsed(weight.grad)
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        with torch.no_grad():  # Adam scales each weight apart, which leads out again
            for name, weight in weights.items():
                weight.copy_(start[name] + common[name].collapsed(weight - start[name]))
    optimizer.zero_grad()


@contextmanager
def _only(model: Any, matrices: dict[str, Any]) -> Iterator[None]:
    """Gradients for these weights alone inside the block."""
    required = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    for module in matrices.values():
        module.weight.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, was in zip(model.parameters(), required, strict=True):
            parameter.requires_grad_(was)


@contextmanager
def _written(model: Any) -> Iterator[list[Tensor]]:
    """What the MLPs write, block by block, in the one forward pass inside the block."""
    found: dict[str, Tensor] = {}
    with ExitStack() as leaving:
        out: list[Tensor] = []
        for i, block in enumerate(_early(model)):
            module = mlp_output(block)
            leaving.callback(Place(module).attach(_taker(found, str(i))).remove)
        yield out
        out.extend(found.values())


def _taker(taken: dict[str, Tensor], name: str) -> Any:
    def take(value: Tensor) -> None:
        taken[name] = value

    return take
