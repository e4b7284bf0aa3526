"""Curvature of the loss, matrix by matrix, by kronfluence."""

import copy
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from workbench.errors import ModelError
from workbench.interventions.bake import plain_weights
from workbench.models.score import device_of, next_logits

BATCH_SIZE = 64
INSTALL = "pip install accelerate einconv opt-einsum && pip install --no-deps kronfluence"
"""Without torchvision, which kronfluence names and does not need, and which fails beside a torch
that is for CPUs alone."""


@dataclass(frozen=True)
class Factors:
    """Curvature of one matrix, with the bias as its last column if it has one.

    Attributes:
        read: eigenvectors of the second moment of what the matrix reads, in columns.
        written: the same of the gradient of what it writes.
        curvature: mean over samples of the squared gradient along each pair of the two.
    """

    read: Float[Tensor, "d_in d_in"]
    written: Float[Tensor, "d_out d_out"]
    curvature: Float[Tensor, "d_out d_in"]

    def divided(
        self, gradient: Float[Tensor, "d_out d_in"], damping: float
    ) -> Float[Tensor, "d_out d_in"]:
        """(H + damping · mean curvature)⁻¹ gradient.

        Source: George et al. 2018, arXiv 1806.03884, eq. 9.
        """
        along = self.written.T @ gradient @ self.read
        along = along / (self.curvature + damping * self.curvature.mean())
        return self.written @ along @ self.read.T


def linears(model: Any) -> dict[str, nn.Module]:
    """The matrices of all MLPs, by the names that the Hugging Face class gives them.

    Raises:
        ModelError: there are none.
    """
    inside = {id(m) for block in model.blocks for m in block.mlp.modules()}
    found = {
        name.replace("._original_component", ""): module
        for name, module in model.original_model.named_modules()
        if id(module) in inside and type(module).__name__ in ("Linear", "Conv1D")
    }
    if not found:
        raise ModelError(
            f"{type(model.original_model).__name__} has no linear layer in its MLPs: wanted a "
            "model whose MLPs are made of torch.nn.Linear, or of GPT-2's Conv1D"
        )
    return found


def as_matrix(
    linear: nn.Module, weight: Tensor, bias: Tensor | None
) -> Float[Tensor, "d_out d_in"]:
    """A linear layer's weight, or its gradient, one row per output, its bias as the last column."""
    # GPT-2's Conv1D keeps its weight transposed.
    matrix = weight.T if type(linear).__name__ == "Conv1D" else weight
    return matrix if bias is None else torch.cat([matrix, bias[:, None]], dim=1)


@torch.no_grad()
def add_matrix(linear: Any, change: Float[Tensor, "d_out d_in"]) -> None:
    """Adds to a linear layer's weight and bias what `as_matrix` would give of the change."""
    if linear.bias is not None:
        linear.bias += change[:, -1].to(linear.bias)
        change = change[:, :-1]
    change = change.to(linear.weight)
    linear.weight += change.T if type(linear).__name__ == "Conv1D" else change


def plain_module(model: Any) -> nn.Module:
    """The model as its Hugging Face class has it, with torch.nn.Linear in its MLPs.

    A TransformerBridge wraps its matrices, and kronfluence knows only `nn.Linear`.
    """
    original, weights = model.original_model, plain_weights(model)
    with torch.random.fork_rng(devices=[]):
        plain = type(original)(copy.deepcopy(original.config)).to(original.dtype)
    plain.load_state_dict(weights)
    for name, module in linears(model).items():
        if type(module).__name__ == "Conv1D":
            parent, _, last = name.rpartition(".")
            setattr(plain.get_submodule(parent), last, _as_linear(module))
    return plain.eval().to(device_of(model))


def fit_factors(
    plain: nn.Module,
    names: Sequence[str],
    tokens: Int[Tensor, "n pos"],
    real: Bool[Tensor, "n pos"],
    seed: int,
) -> dict[str, Factors]:
    """Curvature of the named layers: Fisher information of the next tokens, by EK-FAC.

    Labels are drawn from the model's own predictions, so that this is the Gauss-Newton matrix of
    the loss, not the square of the training gradients. The loss of a row is the sum over its
    tokens. `plain` is wrapped and cannot be used for anything else afterwards.

    Source: Grosse et al. 2023, arXiv 2308.03296, section 2.2; kronfluence.

    Args:
        real: False on padding, which stands at the end.

    Raises:
        ModelError: kronfluence is not installed.
    """
    kronfluence, task = _task(names, seed)
    data = torch.utils.data.TensorDataset(tokens, real)
    # kronfluence asks torch by a name that it will drop, and its loader draws a seed it never uses.
    with (
        tempfile.TemporaryDirectory() as folder,
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", category=FutureWarning)
        analyzer = kronfluence.analyzer.Analyzer(
            "curvature",
            kronfluence.analyzer.prepare_model(plain, task),
            task,
            cpu=device_of(plain).type == "cpu",
            log_level=logging.ERROR,
            disable_tqdm=True,
            output_dir=folder,
        )
        given = kronfluence.arguments.FactorArguments(strategy="ekfac")
        analyzer.fit_all_factors("ekfac", data, per_device_batch_size=BATCH_SIZE, factor_args=given)
        found = analyzer.load_all_factors("ekfac")
    device = device_of(plain)
    return {
        name: Factors(
            found["activation_eigenvectors"][name].to(device),
            found["gradient_eigenvectors"][name].to(device),
            (found["lambda_matrix"][name] / found["num_lambda_processed"][name]).to(device),
        )
        for name in names
    }


def require_kronfluence() -> Any:
    """The library, which is imported when it is needed.

    Raises:
        ModelError: it cannot be; how to install it.
    """
    try:
        import kronfluence
    except ImportError as missing:
        raise ModelError(
            f"EK-FAC needs kronfluence, which cannot be imported ({missing}); install it without "
            f"torchvision: {INSTALL}"
        ) from missing
    return kronfluence


def _task(names: Sequence[str], seed: int) -> tuple[Any, Any]:
    """kronfluence, and the loss whose curvature is wanted in its terms."""
    kronfluence = require_kronfluence()
    generator = torch.Generator().manual_seed(seed)

    class NextTokens(kronfluence.task.Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
            tokens, real = batch
            asked = real[:, 1:]
            logits = next_logits(model, tokens)[:, :-1][asked].float()
            right = tokens[:, 1:][asked]
            if sample:
                likely = logits.detach().softmax(-1).cpu()
                right = torch.multinomial(likely, 1, generator=generator)[:, 0].to(right)
            return functional.cross_entropy(logits, right, reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return list(names)

        def get_attention_mask(self, batch: Any) -> Tensor:
            return batch[1]

    return kronfluence, NextTokens()


def _as_linear(conv: Any) -> nn.Linear:
    """GPT-2's Conv1D, as the torch.nn.Linear that does the same."""
    linear = nn.Linear(*conv.weight.shape, device="meta").to_empty(device=conv.weight.device)
    linear.weight = nn.Parameter(conv.weight.detach().T.clone())
    linear.bias = nn.Parameter(conv.bias.detach().clone())
    return linear
