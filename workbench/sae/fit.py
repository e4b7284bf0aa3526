"""One SAE while it is trained: its weights, its optimizer, and what its features did."""

import os
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch import distributed as dist

from workbench.hooks import Site
from workbench.sae.config import TrainConfig
from workbench.sae.step import Step, dense_step, is_sparse, sparse_step

MAX_NORM = 1.0
"""Longest gradient, as in SAELens' trainer."""
RECENT = 100
"""Steps over which L0 in training is averaged."""


class Fit:
    """Steps one SAE on batches given from outside; all of its state can be saved and loaded.

    Attributes:
        scale: factor on the activations while training.
        since_fired: steps since each feature last fired.
        recent: L0 of the latest steps.
    """

    def __init__(
        self, sae: Any, config: TrainConfig, site: Site, scale: float, device: str
    ) -> None:
        self.sae, self.config, self.site, self.scale = sae.to(device), config, site, scale
        self.device = torch.device(device)
        self.optimizer = torch.optim.Adam(
            sae.parameters(), lr=config.lr, fused=self.device.type in ("cpu", "cuda")
        )
        self.since_fired = torch.zeros(config.d_sae, dtype=torch.int32, device=device)
        self.recent = torch.zeros(RECENT, device=device)
        self.steps_done = 0
        self.latest: dict[str, Tensor] = {}

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        return self.since_fired > self.config.dead_after

    def step(self, rows: Float[Tensor, "batch d_in"], number: int) -> None:
        """One step of Adam on a batch, or on this process's part of it."""
        rows = rows.to(self.device, torch.float32) * self.scale
        found = self._averaged(self._gradients(rows, number))
        for name, parameter in self.sae.named_parameters():
            parameter.grad = found.grads.get(name)
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), MAX_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_at(number)
        self.optimizer.step()
        self.since_fired += 1
        self.since_fired[found.fired] = 0
        l0 = torch.as_tensor(found.active, device=self.device) / len(rows)
        self.recent[number % RECENT] = l0
        self.steps_done = number + 1
        variance = (rows - rows.mean(0)).square().sum()
        self.latest = {**found.losses, "fvu": found.squared_error / variance, "l0": l0}

    def _gradients(self, rows: Float[Tensor, "batch d_in"], number: int) -> Step:
        if is_sparse(self.sae):
            ranks = ranks_of()[1]
            return sparse_step(
                self.sae,
                rows,
                self.dead,
                bfloat16=self.config.bfloat16,
                together=_gathered if ranks > 1 else None,
                ranks=ranks,
            )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            return dense_step(self.sae, rows, self.dead, self.config.coefficients_at(number))

    def _averaged(self, found: Step) -> Step:
        """The step of all processes together, each of which has an equal part of the batch."""
        if not dist.is_initialized():
            return found
        active = torch.as_tensor(found.active, dtype=torch.float32, device=self.device).clone()
        parts = [*found.grads.values(), *found.losses.values(), active]
        joined = torch.cat([part.reshape(-1) for part in parts])
        dist.all_reduce(joined)
        joined /= dist.get_world_size()
        sizes = [part.numel() for part in parts]
        for part, mean in zip(parts, joined.split(sizes), strict=True):
            part.copy_(mean.view(part.shape))
        fired = found.fired.to(torch.uint8)
        dist.all_reduce(fired, dist.ReduceOp.MAX)
        return replace(found, fired=fired.bool(), active=active)

    def l0(self) -> float:
        """Mean number of active features on a token over the latest steps."""
        return self.recent[: self.steps_done].mean().item()

    def dead_share(self) -> float:
        return self.dead.float().mean().item()

    def figures(self) -> dict[str, float]:
        """Losses, FVU, L0 and dead share of the latest batch."""
        return {**{k: v.item() for k, v in self.latest.items()}, "dead": self.dead_share()}

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on."""
        tensors = {
            "since_fired": self.since_fired,
            "recent": self.recent,
            "scale": torch.tensor(self.scale, dtype=torch.double),
        }
        for name, parameter in self.sae.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        for name, buffer in self.sae.named_buffers():
            tensors[f"buffer.{name}"] = buffer
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor], steps_done: int) -> None:
        self.since_fired.copy_(tensors["since_fired"])
        self.recent.copy_(tensors["recent"])
        self.scale, self.steps_done = tensors["scale"].item(), steps_done
        for name, parameter in self.sae.named_parameters():
            parameter.copy_(tensors[f"weight.{name}"])
            moments = {}
            for key in ("step", "exp_avg", "exp_avg_sq"):
                saved = tensors[f"{key}.{name}"]
                # Adam walks through memory: its moments are laid out as the weights are.
                new = saved.clone() if key == "step" else torch.empty_like(parameter).copy_(saved)
                moments[key] = new.to(self.device)
            self.optimizer.state[parameter] = moments
        for name, buffer in self.sae.named_buffers():
            buffer.copy_(tensors[f"buffer.{name}"])


def ranks_of() -> tuple[int, int]:
    """This process's number and how many train together, as torchrun starts them."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def join_ranks(device: str) -> str:
    """Joins the processes that torchrun started, if it did; gives this process's device."""
    if "LOCAL_RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        return device
    if torch.device(device).type != "cuda":
        dist.init_process_group("gloo")
        return device
    device = f"cuda:{os.environ['LOCAL_RANK']}"
    torch.cuda.set_device(device)
    dist.init_process_group("nccl")
    return device


def _gathered(values: Tensor) -> Tensor:
    """The values of all processes, one after the other."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values)
    return torch.cat(parts)
