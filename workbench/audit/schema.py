"""What an audit returns: a closed set of fields, every number beside its references.

The dataclasses below are the schema: a report with a field more, less or of another type is not
read. `AuditReport.json_schema()` gives them as JSON Schema.
"""

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from workbench.artifacts import file_sha256, write_json
from workbench.errors import DataError

SCHEMA: Literal["audit/2"] = "audit/2"
BATTERY_VERSION = "2.0"

Primary = Literal["REMOVED", "SUPPRESSED", "DEGRADED", "NOT_REMOVED", "INCONCLUSIVE"]
Profile = Literal["quick", "standard", "full"]
Role = Literal["confirmatory", "secondary", "descriptive"]
Status = Literal["supported", "contradicted", "not_tested", "not_testable"]
Number = float | None
"""None where it could not be measured, since JSON has no NaN."""
SEALED = ("report.json", "plan.json", "rows.parquet", "scores.parquet")
BESIDE = ("rows", "plan", "scores", "costs")
"""Parts of a report that stand in files of their own."""


class _Closed:
    """Fields that are not in the schema are refused."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Measurement(_Closed):
    """One number: what it is, whose it is, its interval, and how much stands behind it.

    Attributes:
        endpoint: the item of the battery (`B2`, `P1`, `W1`) or `objective`.
        role: `original`, `edited`, `gold-0` and so on, `random`, `permuted`.
        view: of the edited model `text`, `deployed` or `weights`; else empty.
        subset, metric, setting, fold, x: as in `workbench.audit.statistics.Key`.
        low, high: 95 % interval under resampling of entities.
    """

    endpoint: str
    role: str
    view: str
    subset: str
    metric: str
    setting: str
    fold: int
    x: float
    value: float
    low: float
    high: float
    n: int
    n_entities: int
    seed: int


@dataclass(frozen=True)
class Cost(_Closed):
    """How long one job took on one view when it was done, which may have been before."""

    role: str
    view: str
    job: str
    seconds: float


@dataclass(frozen=True)
class DualUse(_Closed):
    """What is to be prevented, for whom, in the user's words; what it costs is in `Collateral`."""

    statement: str


@dataclass(frozen=True)
class TargetInfo(_Closed):
    """What was to be forgotten."""

    id: str
    type: Literal["observed", "latent", "higher_order"]
    n_facts: int
    n_entities: int
    definition: str
    facts: str
    facts_sha256: str
    seed: int
    dual_use: DualUse | None = None


@dataclass(frozen=True)
class WeightDelta(_Closed):
    """H0: how far the edited weights are from the original's.

    Attributes:
        alike_in_bits: by number of bits of W5, the share of the blocks' weights that are the same
            after rounding both models; at 1, rounding undoes the edit.
    """

    changed_tensors: int
    rel_fro: float
    max_rank: int
    alike_in_bits: dict[str, float]


@dataclass(frozen=True)
class ModelInfo(_Closed):
    """A model by the hash of its weights; `recipe` tells what it was trained on, if known."""

    sha256: str
    name: str
    recipe: str


@dataclass(frozen=True)
class EditedInfo(_Closed):
    """The edited model.

    Attributes:
        hooks: one description per edit, in the order applied.
        filter: name of the function that refuses text, empty if there is none.
        prompt: what stands before every text that is read; of what is said of single names, how
            many they are.
    """

    sha256: str
    hooks: tuple[str, ...]
    filter: str
    weights_identical: bool
    delta: WeightDelta
    prompt: str = ""


@dataclass(frozen=True)
class ModelsInfo(_Closed):
    """All models of the audit."""

    original: ModelInfo
    edited: EditedInfo
    gold: tuple[ModelInfo, ...]
    shadows: tuple[ModelInfo, ...] = ()


@dataclass(frozen=True)
class LeakCheck(_Closed):
    """One check of the data contract."""

    id: str
    passed: bool
    value: Number
    limit: Number
    note: str


@dataclass(frozen=True)
class DataInfo(_Closed):
    """Folds and base rates: all that a verdict needs to know about the facts.

    Attributes:
        folds: entity names of T, S and V in each rotation.
        n: facts in T, S and V of the first rotation, fresh ones (Z) and held-out ones (H).
        prior: relation to the share of its most common object among retained facts.
        candidates: relation to its number of candidates.
        guessable_dropped: forget facts that golds answer in at least half of the direct questions,
            as [entity, relation]; nothing is scored on them.
    """

    folds: tuple[dict[str, tuple[str, ...]], ...]
    n: dict[str, int]
    prior: dict[str, float]
    candidates: dict[str, int]
    guessable_dropped: tuple[tuple[str, str], ...]
    leak_checks: tuple[LeakCheck, ...]


@dataclass(frozen=True)
class Integrity(_Closed):
    """What was checked while measuring.

    Attributes:
        untouched: share of models whose weights were bitwise the same afterwards.
        repeated: share of values that a second run of one job gave bit for bit.
        prereg_unchanged: whether the plan hashed before the edited model was opened is the one that
            was carried out.
    """

    untouched: float
    repeated: float
    prereg_unchanged: bool


@dataclass(frozen=True)
class ConceptInfo(_Closed):
    """A higher-order concept: `agreement` is Cohen's kappa of those who labelled its probes."""

    sha256: str
    name: str
    definition: str
    agreement: float
    annotators: int


@dataclass(frozen=True)
class Card(_Closed):
    """What was audited, with what, as known before any score is looked at."""

    profile: Profile
    seed: int
    prereg_sha256: str
    battery_sha256: str
    target: TargetInfo
    models: ModelsInfo
    data: DataInfo
    integrity: Integrity
    env: dict[str, str]
    concept: ConceptInfo | None = None


@dataclass(frozen=True)
class Gate(_Closed):
    """A condition without which REMOVED cannot be given: a value, a limit and a sentence.

    Attributes:
        drops: endpoints that cannot be used at all because it failed.
    """

    id: str
    passed: bool
    value: Number
    limit: Number
    note: str
    drops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Means(_Closed):
    """The same measurement on every model."""

    O: float  # noqa: E741 (the document's letters)
    E: float
    G_mean: Number
    G_each: tuple[float, ...]
    random: Number = None


@dataclass(frozen=True)
class Selection(_Closed):
    """What the auditor chose on S, per rotation, from how many."""

    on: Literal["S", "T", "nothing"]
    grid: int
    chosen: tuple[str, ...]


@dataclass(frozen=True)
class Endpoint(_Closed):
    """How much of the original's advantage over the golds is there under one kind of access.

    Attributes:
        role: the six confirmatory ones decide; others never do.
        rho: (E - G) / (O - G), with its 90 and 95 % intervals.
        p_sup_holm: that rho is not above zero, Holm over the confirmatory ones.
        p_tost: that rho is not within ±delta.
        mde: the smallest excess over the golds that this measurement would find, in units of rho.
        recovered: valid, p_sup_holm below 0.05 and rho at least 0.10.
        equivalent: valid, and the 90 % interval lies within ±delta.
        anti: below the golds: what is pushed down can be read from the bottom.
        valid: the same measurement finds the knowledge in O and not in the golds.
        faithfulness: the AUC with which it told models that know from models that never did when
            the battery was calibrated; None where that was not measured.
    """

    id: str
    name: str
    role: Role
    access: str
    view: str
    metric: str
    n_facts: int
    n_entities: int
    m: Means
    rho: float
    ci90: tuple[float, float]
    ci95: tuple[float, float]
    p_sup_holm: float
    p_tost: float
    delta: float
    mde: float
    recovered: bool
    equivalent: bool
    anti: bool
    valid: bool
    why_invalid: str
    selection: Selection
    faithfulness: Number = None

    @property
    def low(self) -> float:
        return self.ci95[0]

    @property
    def high(self) -> float:
        return self.ci95[1]


@dataclass(frozen=True)
class Curve(_Closed):
    """Hits by dose of an attack, one list per role, golds averaged.

    Attributes:
        taught: by dose, what the attack teaches a model that never knew, as a share of what the
            original knows; None at the first dose, before anything was done.
    """

    steps: tuple[float, ...]
    E: tuple[float, ...]
    O: tuple[float, ...]  # noqa: E741
    G: tuple[Number, ...]
    taught: tuple[Number, ...]


@dataclass(frozen=True)
class Attack(_Closed):
    """One attack with its positive control (O), its negative one (G) and what it teaches.

    Attributes:
        injection_index: what the attack teaches a model that never knew, as a share of what the
            original knows; None without golds.
        destructive: the attacked original loses more than half of what it knew of retained facts.
        utility_after: retained recall of the attacked edited model.
    """

    id: str
    setting: str
    view: str
    runs: int
    injection_index: Number
    admissible: bool
    why: str
    destructive: bool
    utility_after: Number
    curve: Curve


@dataclass(frozen=True)
class Family(_Closed):
    """One way of asking, on every model and view; kept if the original can answer it.

    Attributes:
        raw, centred, kappa: mean by `O`, `Es` (text), `Eh` (deployed), `Ew` (weights), `G`.
    """

    id: str
    setting: str
    access: str
    kept: bool
    why_dropped: str
    raw: dict[str, float]
    centred: dict[str, float]
    kappa: dict[str, float]


@dataclass(frozen=True)
class ProbeRow(_Closed):
    """One probe at one place: what it reads in each model."""

    id: str
    place: str
    view: str
    acc: float
    original: float
    gold: Number
    control_acc: Number
    random_init: Number
    bits: Number
    leak: bool


@dataclass(frozen=True)
class Hooks(_Closed):
    """What the hook checks found; None where a check does not apply or was not run.

    Attributes:
        error_share: by SAE, the share of the target's log-probability that its error carries.
        feature_share_retain: by edit, the share of its features' activation mass that falls on
            prompts about what was to stay.
        bypass: centred hits of forget facts by way of meeting the edit that should not matter.
        doses: by dose of the edit (1 is as deployed), hits of forget facts (`F`), of retained ones
            (`R_te`), and the share of forget facts whose object ranks last (`last`).
        baked_difference: largest difference of a log-probability from the edit in the weights.
    """

    upstream_equal: bool | None
    recompute_gain: Number
    specificity: Number
    fire_rate: dict[str, float]
    split: dict[str, float]
    same_answer: dict[str, float]
    error_share: dict[str, tuple[float, float, float]]
    feature_share_retain: dict[str, tuple[float, float, float]]
    bypass: dict[str, float]
    doses: dict[str, dict[str, float]]
    baked_difference: Number
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Tail(_Closed):
    """Facts that stayed whole while the mean fell.

    Attributes:
        share_E, share_G: facts hit in at least 80 % of their questions which golds hit in at most
            20 %; a gold is compared with the other golds.
        passed: the upper bound of the difference is below the limit: there are no such facts.
        found: the difference is at least the limit, its lower bound above none: there are some.
    """

    id: str
    share_E: float
    share_G: Number
    ucb95_diff: float
    limit: float
    passed: bool
    found: bool


@dataclass(frozen=True)
class Distance(_Closed):
    """Kolmogorov–Smirnov distance of the log-odds of the true objects from the golds'."""

    D: float
    ucb: float
    gold_gold_p95: Number
    limit: float
    passed: bool
    tofu_p: float


@dataclass(frozen=True)
class KeptSet(_Closed):
    """Recall of one set of facts that was to stay.

    Attributes:
        kl_nats: divergence of the edited model's answers from the original's, per question;
            `kl_gold_nats` the golds' own. `flipped` is the share of answers that changed.
    """

    id: str
    n: int
    n_entities: int
    O: float  # noqa: E741
    E: float
    G: Number
    lcb_vs_gold: float
    ucb: float
    kl_nats: Number = None
    kl_gold_nats: Number = None
    flipped: Number = None


@dataclass(frozen=True)
class Collateral(_Closed):
    """What the edit cost.

    Attributes:
        reference: whom the edited model is held against, `gold` or, without golds, `original`.
        ppl_ratio: perplexity on held-out sentences over the reference's, with its 95 % interval.
        valid_answers: share of prompts whose most likely next token begins a candidate.
        fluency: of continued texts, the edited model's, the original's and the golds' entropy of
            n-grams in bits, repeated 4-grams and refusals.
        dual_cost: mean loss against the golds over the retained sets, gains counted as none.
    """

    reference: Literal["gold", "original"]
    sets: tuple[KeptSet, ...]
    ppl_ratio: tuple[float, float, float] | None
    valid_answers: Number
    fluency: dict[str, tuple[float, float, Number]]
    dual_cost: Number
    non_inferior: bool
    degraded: bool
    why: tuple[str, ...]


@dataclass(frozen=True)
class Gap(_Closed):
    """A difference with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class DerivedFlag(_Closed):
    """REDERIVABLE, OVERREACH or LOGIC_BROKEN.

    Attributes:
        value: of the edited model; None where nothing was measured, and `note` says why.
        gap: the edited model less chance or the reference.
        gold_too: whether golds show the same, so that it says nothing of the edit.
    """

    name: str
    raised: bool
    note: str
    value: Number
    gap: Gap | None
    gold: Number
    gold_too: bool


@dataclass(frozen=True)
class Derivation(_Closed):
    """What follows from the target and from what was to stay, and who can still derive it.

    Attributes:
        asked: by way (`stored`, `latent`, `chained`), hits by `O`, `E`, `G`.
        deep: by measure (`success_du`, `recall`, `acc`, `derivable`), means by `O`, `E`, `G`.
    """

    n: int
    asked: dict[str, dict[str, Number]]
    deep: dict[str, dict[str, Number]]
    flags: tuple[DerivedFlag, ...]


@dataclass(frozen=True)
class Concept(_Closed):
    """How often outputs express a higher-order concept; no model is a reference for its absence.

    Attributes:
        n: probes.
        O, golds: probability of expressing it, mean over probes.
        by_view: the same of the edited model, by `Es`, `Eh`, `Ew`.
        change: of what users see, from the original.
    """

    n: int
    O: float  # noqa: E741
    by_view: dict[str, float]
    golds: tuple[float, ...]
    change: Gap
    sentence: str


@dataclass(frozen=True)
class LeakRow(_Closed):
    """What one signal of membership tells; see `workbench.audit.privacy.Leak`."""

    signal: str
    why: str
    auc: Gap | None
    original: Number
    golds: tuple[float, ...]
    gap: Gap | None
    privleak: Number
    leaks: bool


@dataclass(frozen=True)
class ShadowAttack(_Closed):
    """U-LiRA: how well shadow models help to tell unlearned from never trained, fact by fact.

    Attributes:
        why: why there is no figure; empty if there is.
        auc: 0.5 is guessing.
        tpr_5, tpr_1: share of forget facts called unlearned where 5 % and 1 % of the golds' are.
        low: lower end of the 95 % interval of `tpr_5` under resampling of entities.
        unlearned, retrained: shadows.
        leaks: `low` exceeds twice the rate of false alarms.
    """

    why: str
    auc: Number
    tpr_5: Number
    tpr_1: Number
    low: Number
    n_facts: int
    unlearned: int
    retrained: int
    leaks: bool


@dataclass(frozen=True)
class DepthRow(_Closed):
    """P10 at one layer: nats that patching a model's stream into the original costs.

    Attributes:
        E, G: on forget facts; `E_kept` and `G_kept` on retained ones.
    """

    layer: str
    E: float
    G: Number
    E_kept: Number
    G_kept: Number


@dataclass(frozen=True)
class Depth(_Closed):
    """How deep the change goes: `removal` is 0 intact and 1 as a gold, None with the reason.

    Attributes:
        coverage: share of the facts that it rests on.
    """

    rows: tuple[DepthRow, ...]
    removal: Number
    coverage: Number
    why: str


@dataclass(frozen=True)
class Erasure(_Closed):
    """P9 at one layer: what erasing the probes' concept costs beyond random subspaces."""

    layer: str
    E: float
    O: float  # noqa: E741
    G: Number
    guard: float


@dataclass(frozen=True)
class Covered(_Closed):
    """One item of a published checklist, and what of this audit speaks to it.

    Attributes:
        by: items of the battery.
        run: those of them that were run here.
    """

    checklist: str
    item: str
    by: tuple[str, ...]
    run: tuple[str, ...]


@dataclass(frozen=True)
class Verdict(_Closed):
    """What an audit concludes: one word, one sentence, and the reasons for them."""

    primary: Primary
    access: str
    lowest_access_recovered: str
    flags: tuple[str, ...]
    partial_share: Number
    reasons: tuple[str, ...]
    missing: tuple[str, ...]
    sentence: str


@dataclass(frozen=True)
class Claim(_Closed):
    """One thing that people say of an edit, and whether this audit bears it out."""

    claim: Literal[
        "removal_from_weights", "output_suppression", "retrain_indistinguishable", "downstream_use"
    ]
    target_type: str
    access: str
    status: Status
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class AuditReport(_Closed):
    """Everything an audit found; saves to and reloads from a folder without loss.

    Attributes:
        rows: every number, in `rows.parquet`.
        plan: what was fixed before the edited model was opened, in `plan.json`.
        scores: the matrices that everything is computed from, in `scores.parquet`; not read back
            by `open`, since only `verify` needs them.
        leaks, leaks_off: signals of membership, as deployed and with the hooks off.
        costs: how long each job took, in `costs.json`; no part of what is sealed, since it is
            another one each time.
    """

    card: Card
    gates: tuple[Gate, ...]
    endpoints: tuple[Endpoint, ...]
    attacks: tuple[Attack, ...]
    families: tuple[Family, ...]
    probes: tuple[ProbeRow, ...]
    hooks: Hooks | None
    tail: tuple[Tail, ...]
    ks: Distance | None
    derivation: Derivation | None
    concept: Concept | None
    collateral: Collateral
    leaks: tuple[LeakRow, ...]
    leaks_off: tuple[LeakRow, ...]
    shadows: ShadowAttack | None
    depth: Depth | None
    erasures: tuple[Erasure, ...]
    coverage: tuple[Covered, ...]
    loo_verdicts: tuple[Primary, ...]
    verdict: Verdict
    claims: tuple[Claim, ...]
    limits: tuple[str, ...]
    schema: Literal["audit/2"] = SCHEMA
    battery_version: str = BATTERY_VERSION
    rows: tuple[Measurement, ...] = ()
    plan: dict[str, Any] = field(default_factory=dict)
    scores: Any = field(default=None, compare=False, repr=False)
    costs: tuple[Cost, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        """The verdict and how much stands behind it: the rows alone would fill a notebook."""
        about = f"{len(self.endpoints)} endpoints, {len(self.rows)} rows"
        return f"<AuditReport {self.verdict.primary}: {self.verdict.sentence} ({about})>"

    def frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The schema of `report.json` as JSON Schema."""
        schema = _adapter().json_schema()
        for name in BESIDE:
            del schema["properties"][name]
        return schema

    def save(self, folder: Path | str) -> Path:
        """Writes `report.json`, `plan.json`, `rows.parquet` and `scores.parquet` into a folder.

        `seal.json` holds their hashes: an edit by hand shows, though not a forgery.
        """
        from workbench.audit.store import save_scores

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.frame().to_parquet(folder / "rows.parquet", index=False)
        if self.scores is not None:
            save_scores(self.scores, folder / "scores.parquet")
        write_json(folder / "costs.json", [asdict(cost) for cost in self.costs])
        write_json(folder / "plan.json", self.plan)
        write_json(folder / "report.json", self.content())
        sealed = [folder / name for name in SEALED if (folder / name).is_file()]
        write_json(folder / "seal.json", {path.name: file_sha256(path) for path in sealed})
        return folder

    def content(self) -> dict[str, Any]:
        """What `report.json` holds, as JSON values."""
        return _adapter().dump_python(self, mode="json", exclude=set(BESIDE))

    @classmethod
    def open(cls, folder: Path | str) -> "AuditReport":
        """Reads what `save` wrote.

        Raises:
            DataError: the folder holds no report of this schema.
        """
        import pandas as pd

        folder = Path(folder)
        try:
            content = json.loads((folder / "report.json").read_text())
            plan = json.loads((folder / "plan.json").read_text())
            rows = pd.read_parquet(folder / "rows.parquet").to_dict("records")
            noted = folder / "costs.json"
            costs = json.loads(noted.read_text()) if noted.is_file() else []
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder}: no readable report.json, plan.json and rows.parquet ({error})"
            ) from error
        found = content.get("schema") if isinstance(content, dict) else None
        if found != SCHEMA:
            raise DataError(f"{folder / 'report.json'}: schema {found!r}, wanted {SCHEMA!r}")
        try:
            return _adapter().validate_python(
                {**content, "rows": rows, "plan": plan, "costs": costs}
            )
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"{folder}: not a report of schema {SCHEMA}: {where}: {first['msg']} "
                f"({error.error_count()} such faults)"
            ) from error

    def show(self) -> str:
        """The endpoints as a table and the verdict as a sentence, for a terminal."""
        head = (
            f"{'what':<44}{'original':>9}{'edited':>9}{'gold':>8}"
            f"   {'rho, 95 % interval':<24}{'n':>6}"
        )
        lines = [head, "-" * len(head)]
        for e in self.endpoints:
            rho = f"{e.rho:5.2f}  [{e.low:5.2f}, {e.high:5.2f}]"
            mark = "" if e.valid else " (not valid)"
            gold = "none" if e.m.G_mean is None else f"{e.m.G_mean:.3f}"
            name = f"{e.id} {e.name} ({e.access}){mark}"
            lines.append(f"{name:<44}{e.m.O:>9.3f}{e.m.E:>9.3f}{gold:>8}   {rho:<24}{e.n_facts:>6}")
        return "\n".join([*lines, "", f"{self.verdict.primary}: {self.verdict.sentence}"])


@cache
def _adapter() -> Any:
    return TypeAdapter(AuditReport)
