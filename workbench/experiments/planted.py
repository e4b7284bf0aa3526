"""How many of the features that matter each score finds, where it is known which ones matter."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from workbench.artifacts import new_folder, require_replaceable, write_json, write_text
from workbench.experiments.planted_model import CAUSAL, KINDS, PlantedModel, Setting, plant
from workbench.hooks import edited
from workbench.interventions import Rescale, but_bos
from workbench.locate import Method, Prompt, locate, measure
from workbench.locate.joint import Goal, choose_jointly
from workbench.models.score import batches_by_length, next_logits, object_tokens

Say = Callable[[str], None]

SETTINGS = (
    Setting("easy", noise=0.3),
    Setting("decoys", noise=0.7, decoys=12, chance=8),
    Setting("entangled", noise=0.3, decoys=4, shared=2, redundant=2),
    Setting("hard", noise=1.0, decoys=20, chance=8, shared=2, redundant=2),
)
GOALS = (("joint", Goal()), ("joint, far goal", Goal(forget=20.0, harm=1.0)))
"""Of the joint choice: the usual one, which ends it early, and one at the same price that does
not."""
METHODS: tuple[str, ...] = get_args(Method)
BASELINE = "frequency"
MEASURES = {
    "precision": "precision@k",
    "recall": "recall@k",
    "average_precision": "average precision",
    "passing_precision": "passing, precision",
    "passing_recall": "passing, recall",
}
"""What is measured of a score, and how the table calls it."""

LEAST = 0.005
"""Nats that the concept's answers lose on average if a causal feature is ablated."""


@dataclass(frozen=True)
class PlantedConfig:
    """Which models are built and which scores are tried on them.

    Attributes:
        seeds: models per setting.
        random_rows: further features of each SAE.
        goals: names and goals of joint choices, whose sets are at most as large as the truth.
    """

    settings: tuple[Setting, ...] = SETTINGS
    methods: tuple[str, ...] = METHODS
    seeds: int = 5
    random_rows: int = 96
    goals: tuple[tuple[str, Goal], ...] = GOALS


@torch.no_grad()
def answers_of(model: Any, prompts: tuple[Prompt, ...]) -> Float[Tensor, " prompt"]:
    """Log-probability of each prompt's answer, by whole forward passes."""
    rows = model.tokenizer([p.text for p in prompts])["input_ids"]
    right = [ids[0] for ids in object_tokens(model.tokenizer, [str(p.answer) for p in prompts])]
    found = torch.zeros(len(prompts))
    for batch in batches_by_length(rows):
        said = next_logits(model, torch.tensor([rows[i] for i in batch]))[:, -1].log_softmax(-1)
        found[batch] = said[torch.arange(len(batch)), torch.tensor([right[i] for i in batch])]
    return found


def ablation_costs(
    planted: PlantedModel, prompts: tuple[Prompt, ...], features: Sequence[int]
) -> Float[Tensor, " some"]:
    """Mean loss of the answers with each feature ablated, in nats; a pair's two go together.

    A plain loop over whole forward passes, which shares nothing with the scores.
    """
    before = answers_of(planted.model, prompts)
    costs = torch.zeros(len(features))
    for i, feature in enumerate(features):
        both = sorted({feature, planted.twins.get(feature, feature)})
        edit = but_bos(Rescale(planted.sae, torch.tensor(both)))
        with edited(planted.model, [edit]):
            costs[i] = (before - answers_of(planted.model, prompts)).mean()
    return costs


def require_truth(planted: PlantedModel, features: Sequence[int] | None = None) -> None:
    """Ablates features in a plain loop, and compares with what was planted.

    Args:
        features: those that are checked; without it all.

    Raises:
        AssertionError: a causal feature costs the concept's answers less than `LEAST`, or another
            one that much.
    """
    features = range(len(planted.kinds)) if features is None else features
    costs = ablation_costs(planted, planted.passages[0], features)
    for feature, cost in zip(features, costs.tolist(), strict=True):
        kind = planted.kinds[feature]
        assert (cost >= LEAST) == (kind in CAUSAL), f"feature {feature}, {kind}: {cost:.4f} nats"


def precision_recall(
    chosen: Int[Tensor, " chosen"], truth: Bool[Tensor, " d_sae"]
) -> tuple[float, float]:
    """Share of the chosen that are true, and share of the true that are chosen.

    The precision of an empty choice is not a number.
    """
    hits = truth[chosen].sum().item()
    return hits / len(chosen) if len(chosen) else float("nan"), hits / truth.sum().item()


def average_precision(order: Int[Tensor, " ranked"], truth: Bool[Tensor, " d_sae"]) -> float:
    """Mean over the true features of the precision at the rank of each, 0 for one not ranked."""
    hit = truth[order].double()
    precision = hit.cumsum(0) / torch.arange(1, len(order) + 1)
    return ((precision * hit).sum() / truth.sum()).item()


def difference(values: Sequence[float], baseline: Sequence[float]) -> tuple[float, float, float]:
    """Mean of paired differences, and the ends of its 95 % interval by Student's t."""
    found = np.asarray(values) - np.asarray(baseline)
    mean = float(found.mean())
    if len(found) < 2:
        return mean, float("-inf"), float("inf")
    half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return mean, mean - float(half), mean + float(half)


def verdict(low: float, high: float) -> str:
    """What the interval of a difference to the baseline says, in words."""
    if low > 0:
        return "yes"
    return "no, worse" if high < 0 else "no"


def score_rows(
    planted: PlantedModel, method: str, k: int, seed: int
) -> Iterator[tuple[str, float]]:
    """Measures and values of one score, or of a random ranking.

    The choice is the k features with the highest scores on the passages of the choice, or as many
    as score above zero. What passes is sought among twice as many, so that the limit has something
    to turn away.
    """
    if method == "random":
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(planted.kinds), generator=generator)
        yield from _chosen(planted, order, order[:k])
        return
    model, sae, concept = planted.model, planted.sae, planted.concept
    scores = measure(model, sae, concept.select, method).scores()  # pyright: ignore[reportArgumentType]
    order = scores.argsort(descending=True, stable=True)
    positive = int((scores > 0).sum())
    yield from _chosen(planted, order, order[: min(k, positive)])
    passing = order[:0]
    if positive:
        most = min(2 * k, positive)
        passing = locate(model, sae, concept, most, method, seed=seed).passing  # pyright: ignore[reportArgumentType]
    precision, recall = precision_recall(passing, planted.truth)
    yield "passing_precision", precision
    yield "passing_recall", recall
    yield from _by_kind(planted, passing, "passing")


def joint_rows(planted: PlantedModel, goal: Goal, k: int, seed: int) -> Iterator[tuple[str, float]]:
    """The same of the set that is chosen jointly, ranked by when each feature was added."""
    chosen = choose_jointly(
        planted.model, planted.sae, planted.concept, goal, k=k, curve=False, seed=seed
    ).features
    yield from _chosen(planted, chosen, chosen)


def _chosen(
    planted: PlantedModel, order: Int[Tensor, " ranked"], chosen: Int[Tensor, " chosen"]
) -> Iterator[tuple[str, float]]:
    precision, recall = precision_recall(chosen, planted.truth)
    yield "precision", precision
    yield "recall", recall
    yield "average_precision", average_precision(order, planted.truth)
    yield from _by_kind(planted, torch.arange(len(planted.kinds)), "there")
    yield from _by_kind(planted, chosen, "chosen")


def _by_kind(
    planted: PlantedModel, features: Int[Tensor, " some"], name: str
) -> Iterator[tuple[str, float]]:
    """How many of the features are of each kind that there is."""
    picked = [planted.kinds[i] for i in features.tolist()]
    yield from ((f"{name}_{k}", float(picked.count(k))) for k in KINDS if k in planted.kinds)


def run(config: PlantedConfig, out: Path | str, say: Say = lambda line: None) -> pd.DataFrame:
    """Measures all scores on all planted models; writes `rows.parquet`, `table.md`, `config.json`.

    Every planted feature is checked by ablation first, but not the random rows. One row for each
    setting, seed, score and measure.

    Raises:
        DataError: `out` holds what the workbench did not write.
    """
    require_replaceable(out)
    models = [(setting, seed) for setting in config.settings for seed in range(config.seeds)]
    rows: list[dict[str, Any]] = []
    for setting, seed in tqdm(models, desc="planted models", disable=None):
        planted = plant(setting, seed, config.random_rows)
        require_truth(planted, [i for i, kind in enumerate(planted.kinds) if kind != "random"])
        k = int(planted.truth.sum())
        scored = [(m, score_rows(planted, m, k, seed)) for m in (*config.methods, "random")]
        scored += [(name, joint_rows(planted, goal, k, seed)) for name, goal in config.goals]
        for score, found in scored:
            named = {"setting": setting.name, "seed": seed, "score": score}
            rows += [{**named, "measure": name, "value": value} for name, value in found]
        say(f"{setting.name}, seed {seed}")
    frame = pd.DataFrame(rows)
    with new_folder(out) as folder:
        frame.to_parquet(folder / "rows.parquet")
        write_text(folder / "table.md", table(frame) + "\n")
        write_json(folder / "config.json", asdict(config))
    return frame


def table(frame: pd.DataFrame) -> str:
    """Markdown: for each setting what every score finds, and which kinds of features it takes."""
    parts = []
    for setting, some in frame.groupby("setting", sort=False):
        parts += [f"### {setting}", _found(some), _taken(some)]
    return "\n\n".join(parts)


def _found(some: pd.DataFrame) -> str:
    """Mean and standard deviation over seeds, and whether a score beats the baseline."""
    header = ["score", *MEASURES.values(), f"beats {BASELINE}"]
    lines = []
    for score in some["score"].unique():
        cells = [_spread(_values(some, score, measure)) for measure in MEASURES]
        lines.append([score, *cells, _beats(some, score)])
    return _markdown(header, lines)


def _beats(some: pd.DataFrame, score: str) -> str:
    """The verdict on average precision, with the difference behind it."""
    if score == BASELINE or BASELINE not in set(some["score"]):
        return ""
    pair = (_values(some, s, "average_precision").tolist() for s in (score, BASELINE))
    mean, low, high = difference(*pair)
    return f"{verdict(low, high)} ({mean:+.2f} [{low:+.2f}, {high:+.2f}])"


def _taken(some: pd.DataFrame) -> str:
    """How many features of each kind are in the choice, on average, and how many there are."""
    there = {k: _values(some, "random", f"there_{k}") for k in KINDS}
    kinds = {k: values.mean() for k, values in there.items() if len(values)}
    lines = [
        [score, *(f"{_values(some, score, f'chosen_{k}').mean():.1f}" for k in kinds)]
        for score in some["score"].unique()
    ]
    header = ["chosen, of", *(f"{k}, {n:g}" for k, n in kinds.items())]
    return _markdown(header, lines)


def _values(some: pd.DataFrame, score: str, measure: str) -> Float[np.ndarray, " seed"]:
    kept = some.query("score == @score and measure == @measure").sort_values(by="seed")
    return kept["value"].to_numpy(dtype=float)


def _spread(values: Float[np.ndarray, " seed"]) -> str:
    """Mean ± standard deviation over the seeds that have a value."""
    known = values[~np.isnan(values)]
    if not len(known):
        return "nothing" if len(values) else ""
    spread = f" ± {known.std(ddof=1):.2f}" if len(known) > 1 else ""
    empty = f" ({len(known)} of {len(values)})" if len(known) < len(values) else ""
    return f"{known.mean():.2f}{spread}{empty}"


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Runs four settings with five seeds each; about three minutes."""
    torch.set_num_threads(1)
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/planted")
    frame = run(PlantedConfig(), out)
    sys.stdout.write(f"{table(frame)}\n")


if __name__ == "__main__":
    main()
