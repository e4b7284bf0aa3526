"""Choosing an ablation: gate, features, dose and sites, on facts that are never scored."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from workbench.errors import EditError
from workbench.facts.contract import priors
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.hooks import Intervention, Site, edited
from workbench.interventions import (
    Clamp,
    Gate,
    Rescale,
    Weighted,
    calibrated,
    fit_gate_weights,
    gate_peaks,
    random_control,
)
from workbench.interventions.features import Where
from workbench.locate import rank
from workbench.locate.joint import Goal, choose_jointly
from workbench.locate.rows import prompt_streams
from workbench.models.score import ask, recall


@dataclass(frozen=True)
class ChooseConfig:
    """What is tried.

    Attributes:
        k: features clamped at each site, at most.
        methods: how features are found: a score of `locate`, or `joint`.
        goal: what `joint` aims at. The gate keeps retained prompts away, so features are chosen for
            what they forget: harm costs no more than forgetting gains.
        where: tokens that an open gate lets the clamp act on. The same push everywhere moves all
            answers alike, which centring on a model's own mean undoes.
        doses: multiples of each feature's maximum; the trade-off figure sweeps them all.
        false_alarms: share of retained validation prompts on which the gate may open.
        max_harm: largest fall of recall of any retained kind that is acceptable during the choice.
        sample: retained facts asked per kind during the choice.
    """

    k: int = 64
    methods: tuple[str, ...] = ("joint",)
    goal: Goal = field(default_factory=lambda: Goal(12.0, 12.0))
    where: Where = "active"
    doses: tuple[float, ...] = (-0.5, -1.0, -2.0, -4.0)
    false_alarms: tuple[float, ...] = (0.02, 0.05)
    max_harm: float = 0.03
    sample: int = 120
    seed: int = 0


@dataclass(frozen=True)
class Trial:
    """One edit that was tried, with recall on audit-only templates.

    Attributes:
        k: features clamped, over all sites.
        forget: on the S fold.
        retained: the lowest over kinds of retained entities.
        harm: the largest fall below the unedited model over kinds of retained entities.
        control_forget: on the S fold, with matched random features in the place of the chosen ones;
            nan where not measured.
    """

    sites: tuple[str, ...]
    method: str
    false_alarms: float
    dose: float
    k: int
    forget: float
    retained: float
    harm: float
    control_forget: float = float("nan")
    chosen: bool = False


@dataclass(frozen=True)
class Choice:
    """The edit, every trial that led to it, and the sweep over dose of the chosen setting."""

    edits: tuple[Gate, ...]
    trials: tuple[Trial, ...]
    sweep: tuple[Trial, ...]

    def rows(self) -> list[dict[str, Any]]:
        return [asdict(trial) for trial in self.sweep]


def choose_edit(
    model: Any,
    saes: Sequence[Any],
    target: Target,
    config: ChooseConfig | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Choice:
    """Tries gated clamps, keeps the one that leaves least of S without harming what stays.

    Clamps are tried at each site alone and at all together. Gate weights are fitted on training
    templates of T against retained facts outside R_va and R_te; thresholds are set on R_va; the
    choice is made on audit-only templates of S and of retained facts outside R_te. V and R_te have
    no part. Among edits that harm no retained kind by more than `max_harm`, the one nearest to the
    prior on S wins, the less harmful first, then the weaker dose; if all do, the least harmful one.

    Raises:
        EditError: the target has no S fold to choose on.
    """
    config = config or ChooseConfig()
    if not target.folds["S"] or not all(target.retain.values()):
        raise EditError(
            f"target {target.name!r} has no S fold or no retained facts of its relations to choose "
            "an edit on"
        )
    bench = _Bench(model, target, config)
    build = _Builder(model, saes, target, config, say)
    groups = [[sae] for sae in saes] + ([list(saes)] if len(saes) > 1 else [])
    grid = list(itertools.product(groups, config.methods, config.false_alarms, config.doses[1::2]))
    trials = []
    for i, setting in enumerate(grid):
        say(f"try edit {i + 1} of {len(grid)}")
        trials.append(bench.trial(build(*setting), *setting[1:]))
    best = _best(trials, config.max_harm, bench.prior)
    chosen, method, alarms, dose = grid[best]
    sweep = []
    for other in config.doses:
        say(f"sweep dose {other:g}")
        edits = build(chosen, method, alarms, other)
        control = [random_control(e, config.seed) for e in edits]
        trial = bench.trial(edits, method, alarms, other, control)
        sweep.append(replace(trial, chosen=other == dose))
    trials[best] = replace(trials[best], chosen=True)
    return Choice(tuple(build(*grid[best])), tuple(trials), tuple(sweep))


class _Builder:
    """Builds gated clamps; each SAE's gate is fitted and its features located once."""

    def __init__(
        self,
        model: Any,
        saes: Sequence[Any],
        target: Target,
        config: ChooseConfig,
        say: Callable[[str], None],
    ) -> None:
        self.gates, self.features = {}, {}
        self.where: Where = config.where
        for sae in saes:
            say(f"fit gate at {sae.cfg.metadata.hook_name}")
            self.gates[id(sae)] = _fit_gate(model, sae, target, config)
        for sae, method in itertools.product(saes, config.methods):
            say(f"find features at {sae.cfg.metadata.hook_name} by {method}")
            self.features[id(sae), method] = _features(model, sae, target, method, config)

    def __call__(self, saes: Sequence[Any], method: str, alarms: float, dose: float) -> list[Gate]:
        """One gated clamp per SAE; the false alarms allowed are shared between them."""
        edits = []
        for sae in saes:
            weights, peaks = self.gates[id(sae)]
            clamp = Clamp(sae, self.features[id(sae), method], dose, self.where)
            gate = Gate(clamp, Weighted(sae, weights), 0.0)
            edits.append(calibrated(gate, peaks, alarms / len(saes)))
        return edits


def _features(
    model: Any, sae: Any, target: Target, method: str, config: ChooseConfig
) -> torch.Tensor:
    if method != "joint":
        return rank(model, sae, target, config.k, method)[0]  # pyright: ignore[reportArgumentType]
    return choose_jointly(
        model, sae, target, config.goal, k=config.k, curve=False, seed=config.seed
    ).features


def _best(trials: Sequence[Trial], max_harm: float, prior: float) -> int:
    """Index of the trial that wins by the rule of `choose_edit`."""
    kept = [i for i, t in enumerate(trials) if t.harm <= max_harm]
    if not kept:
        return min(range(len(trials)), key=lambda i: trials[i].harm)
    return min(kept, key=lambda i: _preference(trials[i], prior))


def _preference(trial: Trial, prior: float) -> tuple[float, float, int, float]:
    """Nearest to the prior first, to the second digit, and of these the least harmful.

    Then fewer sites, then the weaker dose.
    """
    left, harm = round(abs(trial.forget - prior), 2), round(trial.harm, 3)
    return left, harm, len(trial.sites), abs(trial.dose)


def _fit_gate(
    model: Any, sae: Any, target: Target, config: ChooseConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate weights, and the highest evidence within each retained validation prompt."""
    site = Site.parse(sae.cfg.metadata.hook_name)
    asked_of = {f.subject for f in target.retained}
    unrelated = [
        f
        for facts in sampled_by_kind(target, config, exclude=("R_va", "R_te")).values()
        for f in facts
        if f.subject not in asked_of
    ]
    concept, retained, others = (
        prompt_streams(model, ask(facts, "train"), site)
        for facts in (target.fold("T"), target.retain["R_tr"], unrelated)
    )
    weights = fit_gate_weights(sae, concept, retained, others)
    validation = [*ask(target.retain["R_va"], "train"), *ask(target.retain["R_va"], "audit")]
    streams = prompt_streams(model, validation, site)
    gate = Gate(Rescale(sae, torch.tensor([0])), Weighted(sae, weights), 0.0)
    return weights, gate_peaks(gate, streams)


def sampled_by_kind(
    target: Target, config: ChooseConfig, exclude: Sequence[str]
) -> dict[str, list[Fact]]:
    """Up to `sample` retained facts of each kind of entity, none of the excluded folds."""
    barred = {f.key for fold in exclude for f in target.retain[fold]} | target.forget_keys
    kinds: dict[str, list[Fact]] = {}
    forgotten = set(target.entities)
    for fact in target.facts.facts:
        usable = (
            fact.stated and not fact.derived and fact.audit_templates and fact.key not in barred
        )
        if usable and fact.subject not in forgotten:
            kinds.setdefault(target.facts.entity[fact.subject].kind, []).append(fact)
    rng = random.Random(config.seed)
    return {
        kind: rng.sample(facts, min(config.sample, len(facts))) for kind, facts in kinds.items()
    }


class _Bench:
    """Asks the same selection questions of every edit that is tried."""

    def __init__(self, model: Any, target: Target, config: ChooseConfig) -> None:
        self.model, self.target, self.config = model, target, config
        self.retained = sampled_by_kind(target, config, exclude=("R_te",))
        shares = priors(target.retained)
        s = target.fold("S")
        self.unedited = {kind: self._recall((), facts) for kind, facts in self.retained.items()}
        self.prior = sum(max(shares[f.relation].values()) for f in s if f.relation in shares) / len(
            s
        )

    def trial(
        self,
        edits: Sequence[Gate],
        method: str,
        alarms: float,
        dose: float,
        control: Sequence[Intervention] = (),
    ) -> Trial:
        kept = {kind: self._recall(edits, facts) for kind, facts in self.retained.items()}
        harm = max(self.unedited[kind] - kept[kind] for kind in kept)
        control_forget = self._recall(control, self.target.fold("S")) if control else float("nan")
        sites = tuple(e.site.name for e in edits)
        forget = self._recall(edits, self.target.fold("S"))
        return Trial(
            sites,
            method,
            alarms,
            dose,
            sum(len(e.edit.features) for e in edits),  # pyright: ignore[reportAttributeAccessIssue]
            forget,
            min(kept.values()),
            harm,
            control_forget,
        )

    def _recall(self, edits: Sequence[Intervention], facts: Sequence[Fact]) -> float:
        with edited(self.model, edits):
            return recall(self.model, self.model.tokenizer, self.target.facts, facts, "audit")
