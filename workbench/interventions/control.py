"""Controls: the same edit of something random that is alike in what can be matched."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.errors import EditError, SAEError
from workbench.interventions.features import FeatureEdit
from workbench.interventions.gate import Gate
from workbench.interventions.mean_ablate import MeanAblate
from workbench.interventions.project import Project
from workbench.interventions.replace import Replace
from workbench.interventions.sequence import Sequence
from workbench.interventions.steer import Steer
from workbench.sae.matched import matched_features


def random_control(
    edit: Any, seed: int = 0, rows: Float[Tensor, "token d_model"] | None = None
) -> Any:
    """The same edit on random features, or along random directions, and nothing else changed.

    Each chosen feature gives way to one matched in firing rate and largest push, as
    `matched_features` says; within a sequence, equal features to equal ones and different features
    to different ones, none of which any of its edits chose. A direction gives way to one of equal
    length, a subspace to one of equal rank through the same point. Gates keep their evidence and
    threshold.

    Args:
        rows: of the residual stream at the edit's site, over which the control of a `MeanAblate`
            takes its means.

    Raises:
        EditError: an edit with nothing to choose otherwise, or a `MeanAblate` without rows.
        SAEError: the SAE carries no largest activations or densities, or too few others ever fire.

    Source: none known; SAEBench's unlearning evaluation (Karvonen et al. 2025, arXiv 2503.09532)
    compares SAEs and has no such control.
    """
    chosen: dict[int, tuple[Any, dict[int, None]]] = {}
    for part in _feature_edits(edit):
        features = chosen.setdefault(id(part.sae), (part.sae, {}))[1]
        features.update(dict.fromkeys(part.touched.tolist()))
    swaps = {}
    for sae, features in chosen.values():
        found = matched_features(sae, torch.tensor(list(features)), seed).tolist()
        swaps[id(sae)] = dict(zip(features, found, strict=True))
    return _Control(swaps, torch.Generator().manual_seed(seed), rows).of(edit)


def random_controls(edits: Iterable[Any], n: int, seed: int = 0) -> list[tuple[Any, ...]]:
    """`n` controls of all edits together; none where one of them has no random counterpart."""
    edits = tuple(edits)
    try:
        return [tuple(random_control(e, seed + i) for e in edits) for i in range(n) if edits]
    except (EditError, SAEError):
        return []


def _feature_edits(edit: Any) -> Iterator[FeatureEdit]:
    """The feature edits that an edit is made of."""
    if isinstance(edit, FeatureEdit):
        yield edit
    if isinstance(edit, Gate):
        yield from _feature_edits(edit.edit)
    if isinstance(edit, Sequence):
        for part in edit.edits:
            yield from _feature_edits(part)


@dataclass
class _Control:
    """What stands in the place of each feature of each SAE, and where directions come from."""

    swaps: dict[int, dict[int, int]]
    generator: torch.Generator
    rows: Float[Tensor, "token d_model"] | None

    def of(self, edit: Any) -> Any:
        if isinstance(edit, Gate):
            return replace(edit, edit=self.of(edit.edit))
        if isinstance(edit, Sequence):
            return replace(edit, edits=tuple(self.of(part) for part in edit.edits))
        if isinstance(edit, FeatureEdit):
            return self._features(edit)
        if isinstance(edit, Steer):
            direction = self._random(edit.direction[:, None])[:, 0]
            return replace(edit, direction=direction * edit.direction.norm())
        if isinstance(edit, Project):
            basis = self._random(edit.left)
            return replace(edit, left=basis, right=basis.T)
        raise EditError(
            f"a {type(edit).__name__} has no random control: it changes no chosen features, "
            "direction or subspace for which others could stand"
        )

    def _features(self, edit: Any) -> Any:
        features = self._swapped(edit.sae, edit.features)
        if isinstance(edit, Replace):
            return replace(edit, features=features, others=self._swapped(edit.sae, edit.others))
        if not isinstance(edit, MeanAblate):
            return replace(edit, features=features)
        if self.rows is None:
            raise EditError(
                "a MeanAblate's control has means of its own: pass rows=, of the residual stream "
                "at its site"
            )
        return MeanAblate.fit(edit.sae, features, self.rows, edit.where)

    def _swapped(self, sae: Any, features: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
        return torch.tensor([self.swaps[id(sae)][feature] for feature in features.tolist()])

    def _random(self, like: Float[Tensor, "d_model k"]) -> Float[Tensor, "d_model k"]:
        """Random orthonormal columns."""
        drawn = torch.randn(like.shape, generator=self.generator, dtype=torch.float64)
        q, r = torch.linalg.qr(drawn)
        # The decomposition's own choice of signs favours one side.
        return (q * r.diagonal().sign()).to(like)
