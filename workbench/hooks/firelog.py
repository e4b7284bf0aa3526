"""What edits did while they were attached, counted on the device without waiting for it."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class FireLog:
    """What each edit did while it was attached, in the order the edits were given.

    The counts stay on the device until they are read, so counting stops no stream of CUDA work and
    goes on in replays of a captured graph. `print(log)` says them in words.
    """

    def __init__(self, edits: Sequence[Any], devices: Sequence[torch.device]) -> None:
        self.names = [f"{type(edit).__name__} at {edit.site.name}" for edit in edits]
        self._counts = [torch.zeros(3, dtype=torch.long, device=d) for d in devices]
        self._shares = [torch.zeros((), device=d) for d in devices]

    @property
    def calls(self) -> list[int]:
        """Forward passes seen."""
        return [int(counts[0]) for counts in self._counts]

    @property
    def tokens(self) -> list[int]:
        """Tokens seen."""
        return [int(counts[1]) for counts in self._counts]

    @property
    def changed(self) -> list[int]:
        """Tokens whose residual stream the edit changed."""
        return [int(counts[2]) for counts in self._counts]

    @property
    def relative_change(self) -> list[float]:
        """Norm of the change over that of the stream, mean over changed tokens; 0 without any."""
        return [
            float(share) / max(1, count)
            for share, count in zip(self._shares, self.changed, strict=True)
        ]

    def add(
        self,
        i: int,
        before: Float[Tensor, "*batch d_model"],
        after: Float[Tensor, "*batch d_model"],
    ) -> None:
        """Counts one forward pass of edit `i`."""
        before, after = before.detach(), after.detach()
        wide = torch.promote_types(before.dtype, torch.float32)
        change = torch.linalg.vector_norm(after - before, dim=-1, dtype=wide)
        norm = torch.linalg.vector_norm(before, dim=-1, dtype=wide)
        counts, share = self._counts[i], self._shares[i]
        counts[0].add_(1)
        counts[1].add_(change.numel())
        counts[2].add_((change != 0).sum().to(counts.device))
        share.add_((change / norm.clamp_min(1e-12)).sum().to(share))

    def __str__(self) -> str:
        rows = zip(
            self.names, self.calls, self.tokens, self.changed, self.relative_change, strict=True
        )
        return "\n".join(
            f"{name}: {calls} forward passes, {changed} of {tokens} tokens changed, "
            f"by {share:.3f} of the stream's norm"
            for name, calls, tokens, changed, share in rows
        )
