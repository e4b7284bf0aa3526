"""Whether an SAE fits the model and the texts it is about to be used with."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.errors import SAEError, SiteError
from workbench.hooks import Site, captured, hook_point
from workbench.models.load import weights_sha256
from workbench.models.score import batches_by_length, device_of
from workbench.sae.load import require_width
from workbench.sae.metrics import Texts, reconstruction, spliced, token_rows

BATCH_TOKENS = 4096
"""Tokens in one forward pass; the stream at every site of them stands in memory at once."""

MARGIN = 0.005
"""Smallest difference of FVU that counts: below, both are as good as an SAE gets."""

SITE_RATIO = 0.8
"""Another site fits clearly better if its FVU is below this share of the SAE's own.

On the bundled world, SAEs of six kinds have 2 to 12 times their own FVU one layer off, and 1.15 to
2.2 times at the resid_mid that follows. Layers of deeper models are closer to each other, so the
bound is nearer to 1 than that; a sound SAE stays above it, as its own site is the one it was
fitted to.
"""

SCALE_RATIO = 0.6
"""Another scale fits clearly better if its FVU is below this share of the one as it is.

A sound SAE trained with an L1 penalty shrinks its activations, and larger inputs undo some of that:
on the bundled world its FVU fell to 0.76 at best, those of other kinds to 0.94. A mismatch that
costs less than this bound cannot be told from shrinkage.
"""

OCTAVE_COST = 0.02
"""Share by which each doubling or halving must lower the FVU to be preferred.

JumpReLU SAEs can do as well on any large input; of the factors that are as good, one is wanted that
is nearest to 1.
"""

SCALE_ROWS = 1024
"""Tokens on which scales are tried, three dozen of them; they tell factors, not figures."""

OCTAVES = 10
"""Scales are tried from 2**-10 to 2**10, which spans unit norm and the largest residual streams."""

POOR_FVU = 0.5
"""Published SAEs leave 5 to 40 % unexplained, one of another model about all or more."""

BOS_COST = 0.02
"""Share of the cross-entropy that splicing at the first position alone may cost.

One position out of many should cost next to nothing; on the bundled world it is 0.003 at most.
"""


@dataclass(frozen=True)
class SAECheck:
    """How well an SAE does on a model and texts, and what does not fit, one sentence each.

    Attributes:
        tokens: tokens that were measured: all but the first of each text and any other BOS.
        fvu: fraction of variance unexplained over those tokens.
        fvu_first: squared error at the left-out tokens over their squared distance from the mean
            of the others.
        fvu_all: fraction of variance unexplained with the left-out tokens.
        l0: features active on a token, in the mean.
        dead: share of the features that never fired; it falls with the number of tokens.
        ce_recovered: see `spliced`; the SAE is spliced in at every position.
        kl_recovered: see `spliced`.
    """

    site: str
    tokens: int
    fvu: float
    fvu_first: float
    fvu_all: float
    l0: float
    dead: float
    ce_recovered: float
    kl_recovered: float
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def show(self) -> str:
        """The figures and the problems, as lines of text."""
        lines = [
            f"SAE at {self.site}, {self.tokens} tokens: {'ok' if self.ok else 'does not fit'}",
            f"  FVU {self.fvu:.3g} without the first position ({self.fvu_first:.3g} there, "
            f"{self.fvu_all:.3g} with it)",
            f"  L0 {self.l0:.3g}, {self.dead:.1%} of the features never fired",
            f"  recovered when spliced in: {self.ce_recovered:.1%} of the cross-entropy, "
            f"{self.kl_recovered:.1%} of the divergence",
        ]
        return "\n".join([*lines, *(f"  - {problem}" for problem in self.problems)])


@torch.no_grad()
def check_sae(sae: Any, model: Any, texts: Texts) -> SAECheck:
    """Measures an SAE on a model and texts, and says what does not fit and what to do about it.

    A fault is told by the other setting that does better: another site, another scale, the first
    position left out. So a fault that costs little goes unseen. FVU, L0 and dead features are taken
    without the first position, as SAEs here are trained.

    Args:
        texts: some thousand tokens of the kind the SAE is to be used on; a tensor's rows begin as
            the model's texts do and have no padding.

    Raises:
        SAEError: the SAE reads another width or names no site, or the texts hold no tokens.
        SiteError: the site it names is none of this model's residual stream.
    """
    require_width(sae, model)
    site = _named_site(sae)
    hook_point(model, site)
    tokens = [row for row in token_rows(model, texts) if row]
    rows, first, elsewhere = _measured(sae, model, tokens, site)
    found, fvu_all = reconstruction(sae, rows), reconstruction(sae, torch.cat([rows, first]))["fvu"]
    effect = spliced(model, sae, texts)
    problems = [*_other_model(sae, model), *_misfit(sae, site, rows, found["fvu"], elsewhere)]
    problems += _other_bos(sae, model, tokens)
    fvu_first = _unexplained(sae, first, rows.mean(0))
    # With another fault every position is garbled, the first along with them.
    if not problems and fvu_all > found["fvu"] + MARGIN:
        fvus = {"there": fvu_first, "elsewhere": found["fvu"], "over both": fvu_all}
        spared = spliced(model, sae, texts, keep_first=True)["ce_recovered"]
        problems += _garbled_first(fvus, effect["ce_recovered"], spared)
    return SAECheck(
        site=site.name,
        tokens=len(rows),
        fvu=found["fvu"],
        fvu_first=fvu_first,
        fvu_all=fvu_all,
        l0=found["l0"],
        dead=found["dead"],
        ce_recovered=effect["ce_recovered"],
        kl_recovered=effect["kl_recovered"],
        problems=tuple(problems),
    )


def _named_site(sae: Any) -> Site:
    if not sae.cfg.metadata.hook_name:
        raise SAEError(
            "this SAE names no site; load it with hook_name=, such as 'blocks.10.hook_resid_post'"
        )
    return Site.parse(sae.cfg.metadata.hook_name)


def _measured(
    sae: Any, model: Any, tokens: list[list[int]], own: Site
) -> tuple[Float[Tensor, "token d_model"], Float[Tensor, "first d_model"], dict[Site, float]]:
    """The stream at the SAE's site without and at the left-out tokens, and FVU at all others."""
    sums = {site: _Unexplained() for site in _distinct_sites(model, own)}
    rows, first = [], []
    for batch, kept in _batches(model, tokens):
        with captured(model, list(sums)) as stream:
            model(batch)
        for site, resid in stream.items():
            if site == own:
                rows.append(resid[kept].float())
                first.append(resid[~kept].float())
            else:
                sums[site].add(sae, resid[kept].float())
    if sum(map(len, rows)) < 2:
        raise SAEError("the texts hold no tokens after the first; wanted some thousand in all")
    fvus = {site: total.value() for site, total in sums.items() if site != own and total.count}
    return torch.cat(rows), torch.cat(first), fvus


def _distinct_sites(model: Any, own: Site) -> list[Site]:
    """All sites of the model; the input of a block is left to the block before, if there is one."""
    sites = []
    for layer in range(len(model.blocks)):
        for point in ("resid_pre", "resid_mid", "resid_post"):
            site = Site(layer, point)
            doubled = (point == "resid_pre" and layer > 0) or (
                point == "resid_post" and own == Site(layer + 1, "resid_pre")
            )
            if site == own or (not doubled and _has(model, site)):
                sites.append(site)
    return sites


def _has(model: Any, site: Site) -> bool:
    try:
        hook_point(model, site)
    except SiteError:
        return False
    return True


def _batches(
    model: Any, tokens: list[list[int]]
) -> Iterator[tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]]:
    """Tokens of equal length, and which of them are neither first in their text nor BOS."""
    bos = model.tokenizer.bos_token_id
    for indices in batches_by_length(tokens, BATCH_TOKENS):
        batch = torch.tensor([tokens[i] for i in indices], device=device_of(model))
        kept = torch.ones_like(batch, dtype=torch.bool) if bos is None else batch != bos
        kept[:, :1] = False
        yield batch, kept


class _Unexplained:
    """Fraction of variance unexplained, gathered batch by batch."""

    def __init__(self) -> None:
        self.residual, self.square, self.sum, self.count = 0.0, 0.0, torch.zeros(()), 0

    def add(self, sae: Any, rows: Float[Tensor, "token d_model"]) -> None:
        self.residual += (rows - sae.decode(sae.encode(rows))).square().sum().item()
        # The variance is what is left of two large sums, which takes more than float32.
        self.square += rows.double().square().sum().item()
        self.sum = self.sum + rows.double().sum(0).cpu()
        self.count += len(rows)

    def value(self) -> float:
        variance = self.square - self.sum.square().sum().item() / self.count
        fvu = self.residual / variance if variance > 0 else math.inf
        return fvu if math.isfinite(fvu) else math.inf


def _unexplained(
    sae: Any,
    rows: Float[Tensor, "token d_model"],
    mean: Float[Tensor, " d_model"],
    factor: float = 1.0,
) -> float:
    """Squared error over squared distance from `mean`, with the SAE reading `factor` times rows."""
    residual = rows - sae.decode(sae.encode(factor * rows)) / factor
    return (residual.square().sum() / (rows - mean).square().sum()).item()


def _other_model(sae: Any, model: Any) -> Iterator[str]:
    trained_on = sae.cfg.metadata.model_sha256
    if trained_on and trained_on != (given := weights_sha256(model)):
        yield (
            f"Model: the SAE was trained on weights {trained_on[:12]} "
            f"({sae.cfg.metadata.model_name or 'unnamed'}), the model has {given[:12]}; "
            "load the model it names."
        )


def _misfit(
    sae: Any,
    own: Site,
    rows: Float[Tensor, "token d_model"],
    fvu: float,
    elsewhere: dict[Site, float],
) -> Iterator[str]:
    """The site or the scale, whichever explains more, where either does clearly better."""
    best = min(elsewhere, key=lambda site: elsewhere[site], default=own)
    at_best = elsewhere.get(best, math.inf)
    factor, rescaled = _best_factor(sae, rows)
    site_fits = at_best < min(SITE_RATIO * fvu, fvu - MARGIN)
    scale_fits = rescaled < min(SCALE_RATIO * fvu, fvu - MARGIN)
    if site_fits and not (scale_fits and rescaled < at_best):
        yield (
            f"Site: the SAE names {own.name}, where its FVU is {fvu:.3g}, and fits {best.name}, "
            f"where it is {at_best:.3g}: {_apart(own, best)}; load it with hook_name={best.name!r}."
        )
    elif scale_fits:
        norm, wanted = rows.norm(dim=-1).mean().item(), math.sqrt(rows.shape[1])
        near = abs(math.log(factor * norm / wanted)) < math.log(1.1)
        yield (
            f"Scale: FVU is {fvu:.3g} on activations as they are and {rescaled:.3g} on "
            f"{factor:.3g} times them{', a mean norm of sqrt(d_in)' if near else ''}; fold the "
            f"factor in with sae.fold_activation_norm_scaling_factor({factor:.4g})."
        )
    elif not fvu < POOR_FVU:
        yield (
            f"Fit: FVU is {fvu:.3g} at {own.name}, {at_best:.3g} at the best other site and "
            f"{rescaled:.3g} at the best scale: the SAE is of another model, of weights processed "
            "in another way or of other texts, or was trained badly."
        )


def _best_factor(sae: Any, rows: Float[Tensor, "token d_model"]) -> tuple[float, float]:
    """The factor on the input, undone on the output, that explains most, and its FVU.

    With an L1 penalty, which shrinks activations, it is up to twice the factor that is missing.
    """
    generator = torch.Generator().manual_seed(0)
    some = rows[torch.randperm(len(rows), generator=generator)[:SCALE_ROWS].to(rows.device)]
    mean = some.mean(0)

    def cost(exponent: float) -> float:
        fvu = _unexplained(sae, some, mean, 2.0**exponent)
        return fvu * (1 + OCTAVE_COST * abs(exponent)) if math.isfinite(fvu) else math.inf

    best = min(map(float, range(-OCTAVES, OCTAVES + 1)), key=cost)
    for step in (1 / 4, 1 / 16):
        best = min((best + step * i for i in range(-3, 4)), key=cost)
    return 2.0**best, _unexplained(sae, rows, rows.mean(0), 2.0**best)


def _apart(own: Site, best: Site) -> str:
    """How far apart two sites are; the input of a block is the output of the one before."""
    thirds = {"resid_pre": 0, "resid_mid": 1, "resid_post": 3}
    distance = abs(3 * (own.layer - best.layer) + thirds[own.point] - thirds[best.point])
    if distance % 3:
        return "another point of the stream"
    return "off by one layer" if distance == 3 else f"off by {distance // 3} layers"


def _other_bos(sae: Any, model: Any, tokens: list[list[int]]) -> Iterator[str]:
    bos, wanted = model.tokenizer.bos_token_id, sae.cfg.metadata.prepend_bos
    if bos is None or wanted is None:
        return
    have = sum(row[:1] == [bos] for row in tokens)
    if wanted and have < len(tokens):
        yield (
            f"BOS: the SAE was trained on texts with BOS in front, and {len(tokens) - have} of "
            f"{len(tokens)} texts begin without; put token {bos} in front of them."
        )
    if not wanted and have:
        yield (
            f"BOS: the SAE was trained on texts without BOS, and {have} of {len(tokens)} texts "
            f"begin with it; leave token {bos} out."
        )


def _garbled_first(fvus: dict[str, float], everywhere: float, spared: float) -> Iterator[str]:
    if spared - everywhere > BOS_COST:
        listed = ", ".join(f"{fvu:.3g} {where}" for where, fvu in fvus.items())
        yield (
            f"BOS: the SAE garbles the first position (FVU {listed}), and splicing it in there "
            f"lowers the recovered cross-entropy from {spared:.1%} to {everywhere:.1%}; leave the "
            "first position as it is, and out of all measurements."
        )
