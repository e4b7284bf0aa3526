"""P9: whether what a probe reads is used, by taking it out and asking."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.audit.probes.labels import Labels
from workbench.audit.probes.rows import depths, mean_rows, places, site_below
from workbench.audit.questions.scorer import raw_hits
from workbench.audit.statistics import Key, joined
from workbench.audit.views import Found, Measure, View
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import Site

RANDOM = 5
"""Random subspaces that each erasure is held against."""


@dataclass(frozen=True)
class Erase:
    """Takes a subspace out of the stream at the last token of each text."""

    site: Site
    left: Float[Tensor, "d_model k"]
    right: Float[Tensor, "k d_model"]
    bias: Float[Tensor, " d_model"]

    def __call__(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        last = resid[:, -1:]
        left, right, bias = (t.to(last) for t in (self.left, self.right, self.bias))
        return torch.cat([resid[:, :-1], last - (last - bias) @ right.T @ left.T], dim=1)


@dataclass(frozen=True)
class Whitening:
    """Turns rows so that every direction they vary in has unit variance, and back.

    Attributes:
        there: from the stream to the turned space; `back` from there to the stream.
    """

    mean: Float[Tensor, " d_model"]
    there: Float[Tensor, "k d_model"]
    back: Float[Tensor, "d_model k"]

    @classmethod
    def of(cls, rows: Float[Tensor, "row d_model"]) -> "Whitening":
        x = rows.double() - rows.double().mean(0)
        _, spread, axes = torch.linalg.svd(x / max(1, len(x) - 1) ** 0.5, full_matrices=False)
        real = spread > spread[0] * 1e-6
        spread, axes = spread[real], axes[real]
        return cls(rows.double().mean(0), axes / spread[:, None], axes.T * spread)


def amnesic_job(target: Target, seed: int = 0) -> dict[str, Measure]:
    """P9, one job: raw hits of forget facts with what tells the answer erased at one depth.

    For each relation, LEACE is fitted on retained facts' rows at the last token, with their objects
    as classes, and erases there, at one depth at a time, while forget facts are asked on audit-only
    templates. Settings: `layer 2, concept`; `layer 2, random 0` and so on, subspaces of the same
    rank with the same variance in whitened space; `none`. The effect is what the concept costs
    beyond what random subspaces cost: near zero where probes read what the model does not use.
    `guard`, one number per depth, is the share that is left of the largest singular value between
    classes and whitened rows of the same facts in audit-only templates, on which nothing was
    fitted: near zero where a linear reader finds nothing there either.

    Args:
        seed: of the random subspaces.

    Source: amnesic probing, Elazar et al. 2021, arXiv 2006.00995; LEACE, Belrose et al. 2023, arXiv
    2306.03819. Differs: random subspaces are drawn in whitened space.
    """
    return {f"P9 amnesic seed {seed}": lambda view: _measure(view, target, seed)}


def concept(
    rows: Float[Tensor, "row d_model"], classes: Int[Tensor, " row"]
) -> tuple[Float[Tensor, "d_model k"], Float[Tensor, "k d_model"], Float[Tensor, " d_model"]]:
    """What LEACE takes out of rows so that no linear reader tells their classes: left, right, bias.

    Fitted in float64, without the package's shrinkage and guards, which give up the guarantee.
    """
    with warnings.catch_warnings():
        # The package compiles a function that is not used here when it is imported.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=Warning)
        from concept_erasure import LeaceFitter
    one_hot = torch.nn.functional.one_hot(classes).double()
    eraser = LeaceFitter.fit(
        rows.double(),
        one_hot[:, one_hot.any(0)],
        shrinkage=False,
        svd_tol=1e-6,
        constrain_cov_trace=False,
    ).eraser
    assert eraser.bias is not None
    kept = eraser.proj_left.norm(dim=0) > 0
    return eraser.proj_left[:, kept], eraser.proj_right[kept], eraser.bias


def guard(
    rows: Float[Tensor, "row d_model"],
    classes: Int[Tensor, " row"],
    white: Whitening | None = None,
) -> float:
    """Largest singular value between whitened rows and centred classes: 0 is nothing linear.

    Args:
        white: of other rows; default that of these.
    """
    if len(rows) < 2:
        return 0.0
    white = white or Whitening.of(rows)
    turned = (rows.double() - white.mean) @ white.there.T
    one_hot = torch.nn.functional.one_hot(classes).double()
    cross = turned.T @ (one_hot - one_hot.mean(0)) / (len(rows) - 1)
    return float(torch.linalg.matrix_norm(cross, 2)) if cross.numel() else 0.0


def _measure(view: View, target: Target, seed: int) -> Found:
    labels, fitted_on = Labels.of(target), target.retain["R_tr"]
    if not fitted_on:
        return {}
    last = [i for i, place in enumerate(places(view.model)) if place.position == "last"]
    rows, held_out = (mean_rows(view, fitted_on, t)[last] for t in ("train", "audit"))
    classes, relation = labels.objects(fitted_on), labels.relation_of(fitted_on)
    parts: dict[str, list[Found]] = {}
    for r, name in enumerate(labels.relations):
        asked = [f for f in target.forget if f.relation == name]
        own = relation == r
        if asked and len(classes[own].unique()) > 1:
            for layer, at, other in zip(depths(view.model), rows, held_out, strict=True):
                given = at[own], other[own], classes[own]
                for what, found in _erased(view, target, asked, layer, *given, seed):
                    parts.setdefault(what, []).append(found)
            parts.setdefault("none", []).append(_asked(view, target, asked, ()))
    return {
        Key("P9", "F", metric, what): joined(*(found[_hit(metric)] for found in founds))
        for what, founds in parts.items()
        for metric in ("raw", "guard")
        if all(_hit(metric) in found for found in founds)
    }


def _erased(
    view: View,
    target: Target,
    asked: list[Fact],
    layer: int,
    rows: Float[Tensor, "row d_model"],
    held_out: Float[Tensor, "row d_model"],
    classes: Int[Tensor, " row"],
    seed: int,
):
    """Hits under the erasure of the concept, and of random subspaces of its rank."""
    site, white = site_below(layer), Whitening.of(rows)
    left, right, bias = concept(rows, classes)
    found = _asked(view, target, asked, (Erase(site, left, right, bias),))
    cleaned = held_out.double() - (held_out.double() - bias) @ right.T @ left.T
    like = found[_hit("raw")]
    had = guard(held_out, classes, white)
    left_over = like.values * 0 + (guard(cleaned, classes, white) / had if had else 0.0)
    yield f"layer {layer}, concept", {**found, _hit("guard"): _with(like, left_over)}
    for i in range(RANDOM):
        generator = torch.Generator().manual_seed(1000 * seed + 10 * layer + i)
        drawn = torch.randn(white.there.shape[0], left.shape[1], generator=generator).double()
        basis = torch.linalg.qr(drawn)[0]
        erase = Erase(site, white.back @ basis, basis.T @ white.there, white.mean)
        yield f"layer {layer}, random {i}", _asked(view, target, asked, (erase,))


def _asked(view: View, target: Target, asked: list[Fact], erased: tuple[Erase, ...]) -> Found:
    edits = [*view.edits, *erased]
    return {_hit("raw"): raw_hits(view.model, edits, target.facts, asked, "audit")}


def _hit(metric: str) -> Key:
    return Key("P9", "F", metric)


def _with(like, values):
    return type(like)(values, like.entities, like.relations)
