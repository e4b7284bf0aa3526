"""Ways of saying where in a model facts are, each a score per component and, for some, per neuron.

A component is the attention or the MLP of one layer. No way is told where the facts were written.
"""

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.activations import harvest
from workbench.experiments.localise_model import PARTS, linears_of
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import Site, captured, edited, residuals
from workbench.locate import Contrast, Method, Prompt, measure
from workbench.models.score import ask
from workbench.sae import TrainConfig, train_saes
from workbench.unlearn import needle
from workbench.unlearn.gradients import alike, log_odds, mean_square
from workbench.unlearn.training import HELD_OUT, Told, answer_logp, kept_texts, prompts, told

NOISE = 3.0
"""Of the subject, in standard deviations of the embeddings (Meng et al. 2022)."""
FEATURE_SCORES: tuple[Method, ...] = ("auroc", "attribution")
FEATURE_PROMPTS = 100
"""A side, of which features are scored."""
BEST = 16
"""Features that a layer is judged by."""
FLOOR = 0.3
"""Share of the mean importance to retained facts that is added to each neuron's."""


@dataclass(frozen=True)
class Asked:
    """What every way is shown: the planted facts and as many retained ones, training templates."""

    target: Target
    facts: tuple[Fact, ...]
    forget: list[Told]
    retain: list[Told]
    retained_facts: tuple[Fact, ...]

    @classmethod
    def of(
        cls, model: Any, target: Target, facts: Sequence[Fact], prompts_: int, seed: int
    ) -> "Asked":
        rng = random.Random(str(seed))
        retained = rng.sample(list(target.retain["R_tr"]), len(facts))
        forget, retain = (told(model.tokenizer, target, f) for f in (facts, retained))
        forget, retain = (rng.sample(s, min(prompts_, len(s))) for s in (forget, retain))
        return cls(target, tuple(facts), forget, retain, tuple(retained))


@dataclass(frozen=True)
class Found:
    """Scores, higher where the facts are said to be.

    Attributes:
        components: of each layer's attention and MLP; `layers` instead where a way tells layers
            alone.
        neurons: of each neuron of each MLP, where a way tells them.
    """

    layers: Float[Tensor, " layer"]
    components: Float[Tensor, "layer part"] | None = None
    neurons: Float[Tensor, "layer d_mlp"] | None = None


def of_components(
    components: Float[Tensor, "layer part"], neurons: Float[Tensor, "layer d_mlp"] | None = None
) -> Found:
    """A layer counts as its better component."""
    return Found(components.amax(1), components, neurons)


@dataclass(frozen=True)
class Shift:
    """Adds what is given to the stream."""

    site: Site
    by: Float[Tensor, "batch pos d_model"]

    def __call__(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        return resid + self.by


def sites_of(model: Any) -> list[tuple[Site, Site, Site]]:
    """Before, within and after each layer.

    Attention writes between the first two, the MLP between the last two.
    """
    points = ("resid_pre", "resid_mid", "resid_post")
    return [tuple(Site(i, p) for p in points) for i in range(len(model.blocks))]  # pyright: ignore[reportReturnType]


@torch.no_grad()
def causal_tracing(model: Any, asked: Asked, seed: int) -> Found:
    """How much of the answer comes back if one component writes what it wrote without the noise.

    The subject's embeddings are blurred; what a component writes is restored at all tokens.

    Source: Meng et al. 2022, arXiv 2202.05262, section 2.1. Differs: one component at a time, in
    the place of windows of ten layers, and at all tokens.
    """
    sites = sites_of(model)
    every = [s for layer in sites for s in layer]
    generator = torch.Generator().manual_seed(seed)
    sd = NOISE * model.embed.original_component.weight.std()
    effects, count = torch.zeros(len(sites), 2), 0
    for batch in alike(asked.forget):
        tokens = prompts(batch, "cpu", answered=True)
        clean = residuals(model, tokens, every)
        noise = sd * torch.randn(clean[every[0]].shape, generator=generator)
        blur = Shift(every[0], noise * _subjects(asked, model, batch, tokens)[..., None])
        with edited(model, [blur]):
            blurred = residuals(model, tokens, every)
            base = answer_logp(model, batch)
        for layer, points in enumerate(sites):
            for part, (before, after) in enumerate(pairwise(points)):
                written = [s[after] - s[before] for s in (clean, blurred)]
                with edited(model, [blur, Shift(after, written[0] - written[1])]):
                    effects[layer, part] += (answer_logp(model, batch) - base).sum()
        count += len(batch)
    return of_components(effects / count)


def _subjects(asked: Asked, model: Any, batch: list[Told], tokens: Tensor) -> Tensor:
    """Which tokens are a subject's, of the last mention."""
    names = {f.subject for f in asked.facts}
    words = model.tokenizer([f" {n}" for n in names], add_special_tokens=False)["input_ids"]
    mask = torch.zeros(tokens.shape)
    for row, t in enumerate(batch):
        ends = [w for w in words if t.ids[t.subject_end + 1 - len(w) : t.subject_end + 1] == w]
        mask[row, t.subject_end + 1 - max(map(len, ends)) : t.subject_end + 1] = 1
    return mask


def attribution(model: Any, asked: Asked, seed: int) -> Found:
    """Activation × gradient of the answer's log-odds, forget against retained facts.

    Of a component, what it writes times the gradient there; of a neuron, its value vector times
    the gradient in it. Sizes are averaged, and divided by those on retained facts.

    Source: Kramár et al. 2024, arXiv 2403.00745, with an ablation to nothing.
    """
    del seed
    sides = asked.forget, asked.retain
    components = ratio(*(_written_times_gradient(model, side) for side in sides))
    return of_components(components, ratio(*(needle.attribution(model, side) for side in sides)))


def _written_times_gradient(model: Any, side: list[Told]) -> Float[Tensor, "layer 2"]:
    sites = sites_of(model)
    every = [s for layer in sites for s in layer]
    total = torch.zeros(len(sites), 2)
    for batch in alike(side):
        with captured(model, every) as stream:
            odds = log_odds(model, batch).sum()
        slopes = dict(
            zip(every, torch.autograd.grad(odds, [stream[s] for s in every]), strict=True)
        )
        for layer, points in enumerate(sites):
            for part, (before, after) in enumerate(pairwise(points)):
                effect = (stream[after] - stream[before]) * slopes[after]
                total[layer, part] += effect.sum((1, 2)).abs().sum().detach()
    return total / len(side)


def ratio(forget: Tensor, retain: Tensor) -> Tensor:
    """How much more something matters to forget facts; the floor keeps out what matters to none."""
    return forget / (retain + FLOOR * retain.mean())


def by_gradients(model: Any, asked: Asked, seed: int) -> dict[str, Found]:
    """Three ways that read the squared gradients of the answers, prompt by prompt.

    - `gradient`: their mean on forget facts, per weight.
    - `Fisher mask`: the share of weights among the hundredth that matters most to forget facts
      beside retained ones, as selective synaptic dampening chooses (arXiv 2308.07707).
    - `influence`: of the forget facts on themselves, gradient² over curvature, per weight; the
      curvature is the diagonal of the Fisher information on retained facts.
    """
    del seed
    layers = [linears_of(model, i, part) for i in range(len(model.blocks)) for part in PARTS]
    weights: list[Any] = [linear.weight for group in layers for linear in group.values()]
    sides = [iter(mean_square(model, weights, side)) for side in (asked.forget, asked.retain)]
    squares = [[{n: next(side) for n in group} for group in layers] for side in sides]
    everything = torch.cat([_flat(r) for r in squares[1]]).mean()
    ratios = [
        {n: f[n] / (r[n] + FLOOR * everything) for n in f} for f, r in zip(*squares, strict=True)
    ]
    every = torch.cat([_flat(r) for r in ratios])
    limit = every.kthvalue(int(0.99 * len(every))).values
    masks = [{n: (v > limit).float() for n, v in group.items()} for group in ratios]
    told_by = {"gradient": squares[0], "Fisher mask": masks, "influence": ratios}
    return {name: _means(values) for name, values in told_by.items()}


def _flat(matrices: dict[str, Tensor]) -> Tensor:
    return torch.cat([m.flatten() for m in matrices.values()])


def _means(values: list[dict[str, Tensor]]) -> Found:
    """The mean over each component's weights, and over those of each neuron."""
    components = torch.stack([_flat(v).mean() for v in values]).reshape(-1, len(PARTS))
    neurons = [v["gate"].sum(1) + v["in"].sum(1) + v["out"].sum(0) for v in values if "gate" in v]
    return of_components(components, torch.stack(neurons))


def by_features(model: Any, asked: Asked, seed: int, samples: int) -> dict[str, Found]:
    """How well features of an SAE after each layer tell the planted facts from retained ones.

    SAEs are trained on texts that stay and on those that state the planted facts. A layer's score
    is the mean of its best features': how well one alone tells the two apart (AUROC), or how much
    the answers rest on it (attribution).
    """
    rng = random.Random(str(seed))
    keys = {f.key for f in asked.facts}
    stated = [d.text for d in asked.target.facts.corpus if not keys.isdisjoint(d.states)]
    kept = kept_texts(asked.target, HELD_OUT)
    texts = [*stated, *rng.sample(kept, min(len(kept), 3 * len(stated)))]
    sites = [Site(i) for i in range(len(model.blocks))]
    config = TrainConfig(d_sae=512, k=16, samples=samples, batch_size=512, seed=seed)
    sides = [
        tuple(
            Prompt(q.prompt, q.fact.subject, 0, q.fact.subject, None, q.fact.object) for q in some
        )
        for some in (
            rng.sample(ask(facts, "train"), 100) for facts in (asked.facts, asked.retained_facts)
        )
    ]
    with tempfile.TemporaryDirectory() as folder:
        acts = harvest(model, texts, sites, Path(folder) / "acts", progress=False)
        saes = train_saes(acts, {"sae": config}, Path(folder) / "saes", progress=False)
        contrast, trained = Contrast(*sides), [saes[site.name, "sae"] for site in sites]
        return {
            f"features, {name}": Found(
                torch.stack(
                    [_best(measure(model, sae, contrast, name).scores()) for sae in trained]
                )
            )
            for name in FEATURE_SCORES
        }


def _best(scores: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
    """The mean of a layer's best features."""
    return scores.topk(BEST).values.mean()


def change_of_weights(model: Any, gold: Any) -> Found:
    """Where the weights differ from before: no way of searching, but the check of the truth."""
    values = [
        {
            n: (linear.weight - linears_of(gold, i, part)[n].weight).detach().square()
            for n, linear in linears_of(model, i, part).items()
        }
        for i in range(len(model.blocks))
        for part in PARTS
    ]
    return _means(values)
