"""Taking a subspace out of the stream: what is linear in a concept goes, the rest stays."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import EditError
from workbench.hooks import Site


@dataclass(frozen=True)
class Project:
    """x - left · right · (x - bias): the component within a subspace becomes that of `bias`.

    Attributes:
        left: columns that span what is taken out.
        right: reads how much of each column there is. Where right · left is the identity, doing it
            twice is doing it once.
        bias: the point whose component all tokens are given.
    """

    site: Site
    left: Float[Tensor, "d_model k"]
    right: Float[Tensor, "k d_model"]
    bias: Float[Tensor, " d_model"]

    def __post_init__(self) -> None:
        for name in ("left", "right", "bias"):
            object.__setattr__(self, name, getattr(self, name).detach().contiguous())
        left, right, bias = (list(t.shape) for t in (self.left, self.right, self.bias))
        if len(left) != 2 or 0 in left or right != left[::-1] or bias != left[:1]:
            raise EditError(
                f"left {left}, right {right}, bias {bias}: wanted [d_model, k], [k, d_model] and "
                "[d_model], with k from 1 on"
            )
        if not all(t.isfinite().all() for t in (self.left, self.right, self.bias)):
            raise EditError("left, right or bias is not finite: wanted finite numbers")

    @classmethod
    def leace(
        cls,
        site: Site,
        rows: Float[Tensor, "token d_model"],
        labels: Bool[Tensor, " token"] | Int[Tensor, " token"],
    ) -> "Project":
        """No linear probe tells the labels of these rows any more; the smallest such change.

        Its rank is the number of classes less one.

        Args:
            labels: the class of each row. Classes count as names: 0, 1, 2 are no scale.

        Raises:
            EditError: not one label for each row, fewer than two classes, or classes whose rows
                have the same mean.

        Source: Belrose et al. 2023, arXiv 2306.03819, Theorem 4.3, by the package concept-erasure.
        Differs: fitted in float64, and nothing that tells classes apart is cut off as too small.
        """
        _require_rows(rows, labels)
        classes = labels.unique()
        if len(classes) < 2:
            raise EditError(f"labels of {len(classes)} class: wanted two or more")
        with warnings.catch_warnings():
            # The package compiles a function that is not used here when it is imported.
            warnings.filterwarnings("ignore", message=".*torch.jit.script", category=Warning)
            from concept_erasure import LeaceFitter
        one_hot = (labels[:, None] == classes).double()
        # The trace cannot grow but for rounding, and the guard against it gives up the guarantee.
        eraser = LeaceFitter.fit(
            rows.detach().double(), one_hot, svd_tol=1e-8, constrain_cov_trace=False
        ).eraser
        kept = eraser.proj_left.norm(dim=0) > 0
        if not kept.any():
            raise EditError("classes whose rows have the same mean: wanted a concept to take out")
        return cls(site, eraser.proj_left[:, kept], eraser.proj_right[kept], eraser.bias)

    @classmethod
    def mean_difference(
        cls,
        site: Site,
        concept: Float[Tensor, "token d_model"],
        others: Float[Tensor, "other d_model"],
    ) -> "Project":
        """The component along the difference of two means becomes that of the others' mean.

        Raises:
            EditError: no rows on one side, or two equal means.

        Source: Arditi et al. 2024, arXiv 2406.11717, equation 4. Differs: the component is set to
        what it is elsewhere instead of zero.
        """
        if not len(concept) or not len(others):
            raise EditError(
                f"{len(concept)} rows of the concept and {len(others)} others: wanted some of both"
            )
        mean = others.detach().double().mean(0)
        return cls._along(site, concept.detach().double().mean(0) - mean, mean)

    @classmethod
    def probe(
        cls,
        site: Site,
        rows: Float[Tensor, "token d_model"],
        labels: Bool[Tensor, " token"],
        penalty: float = 1.0,
    ) -> "Project":
        """A logistic regression says of every token what it says of the others' mean.

        It is one probe that is blinded: another may still tell the concept, which `leace` rules
        out. The probe is fitted on rows in units of each dimension's standard deviation, so that
        the penalty weighs all dimensions alike, and its direction is that in the stream's units.

        Args:
            labels: True on rows of the concept.
            penalty: scikit-learn's C, smaller is stronger.

        Raises:
            EditError: not one label for each row, or rows of one kind alone.
        """
        from sklearn.linear_model import LogisticRegression

        _require_rows(rows, labels)
        if labels.all() or not labels.any():
            raise EditError("rows of one kind alone: wanted some of the concept and some others")
        x = rows.detach().double()
        scale = x.std(0, correction=0)
        scale = torch.where(scale > 0, scale, 1.0)
        model = LogisticRegression(C=penalty, tol=1e-6, max_iter=5000)
        model.fit(((x - x.mean(0)) / scale).cpu().numpy(), labels.cpu().numpy())
        direction = torch.from_numpy(model.coef_[0]).to(x) / scale
        return cls._along(site, direction, x[~labels].mean(0))

    @classmethod
    def _along(
        cls, site: Site, direction: Float[Tensor, " d_model"], bias: Float[Tensor, " d_model"]
    ) -> "Project":
        length = direction.norm()
        if not length.isfinite() or length == 0:
            raise EditError("rows of the concept that are like the others: wanted a difference")
        unit = direction / length
        return cls(site, unit[:, None], unit[None], bias)

    @property
    def rank(self) -> int:
        """Dimensions of what is taken out."""
        return self.left.shape[1]

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        wide = torch.promote_types(resid.dtype, torch.float32)
        x = resid.to(wide)
        left, right, bias = (t.to(resid.device, wide) for t in (self.left, self.right, self.bias))
        return (x - (x - bias) @ right.T @ left.T).to(resid.dtype)


def _require_rows(rows: Float[Tensor, "token d_model"], labels: Any) -> None:
    if labels.shape != rows.shape[:1]:
        raise EditError(
            f"labels of shape {list(labels.shape)} for {len(rows)} rows: wanted one label each"
        )
