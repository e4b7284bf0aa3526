"""How often each way of locating facts finds the place where they are known to have been written.

Golds of the bundled world, which never knew the target, are taught a few of its facts with all
weights frozen but those of one place: `python -m workbench.experiments.localise OUT`.
"""

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor
from tqdm.auto import tqdm

from workbench.artifacts import mark_replaceable, require_replaceable, write_json, write_text
from workbench.errors import DataError
from workbench.experiments.localise_model import (
    PARTS,
    Kind,
    Place,
    PlantConfig,
    chosen_facts,
    plant,
)
from workbench.experiments.localisers import (
    Asked,
    Found,
    attribution,
    by_features,
    by_gradients,
    causal_tracing,
    change_of_weights,
)
from workbench.facts import load_facts
from workbench.facts.schema import Fact
from workbench.facts.target import Target
from workbench.models import load_golds

Say = Callable[[str], None]

CHECK = "change of weights"
"""The way that knows the model of before: it finds what was trained, or the truth is wrong."""
LEAST = 0.9
"""Recall in training templates from which on a planting counts."""


@dataclass(frozen=True)
class LocaliseConfig:
    """Which facts are planted where, and what the ways are shown.

    Attributes:
        seeds: each with a gold, facts and neurons of its own.
        prompts: of planted facts, and as many of retained ones, that gradients and tracing read.
        samples: activations that each SAE is trained on; 0 trains none.
    """

    target: str = "toxins"
    kinds: tuple[Kind, ...] = ("layer", "adapter", "attention", "neurons")
    layers: tuple[int, ...] = (0, 1, 2, 3)
    seeds: tuple[int, ...] = (0,)
    plant: PlantConfig = field(default_factory=PlantConfig)
    prompts: int = 60
    samples: int = 40_000


def run(config: LocaliseConfig, out: Path | str, say: Say = lambda line: None) -> pd.DataFrame:
    """Plants, searches and compares; writes `config.json`, `rows.json` and `table.md`.

    Each planting is a file in `out/plantings`, and is not made again if it is there: a run that was
    killed goes on. The unplanted golds are searched for the same facts, and stand against every
    place in turn: what a way finds there it finds by chance, or by habit.

    Returns:
        One row for each seed, place, way and measure; `planted` tells the control from the rest.

    Raises:
        DataError: `out` holds a run of another config, or what the workbench did not write.
    """
    out = Path(out)
    _require_same(config, out)
    target = load_facts("valley").target(config.target)
    golds = load_golds("valley")
    places = [Place(kind, layer) for kind in config.kinds for layer in config.layers]
    jobs = [(seed, place) for seed in config.seeds for place in (None, *places)]
    records = []
    for seed, place in tqdm(jobs, desc="plantings", disable=None):
        name = "unplanted" if place is None else place.name
        file = out / "plantings" / f"{name}-{seed}.json"
        if not file.is_file():
            write_json(file, _record(golds[seed % len(golds)], target, place, config, seed))
            say(f"{name}, seed {seed}")
        records.append(json.loads(file.read_text()))
    frame = pd.DataFrame(rows_of(records))
    write_json(out / "rows.json", frame.to_dict("records"))
    write_text(out / "table.md", table(frame, records) + "\n")
    return frame


def _require_same(config: LocaliseConfig, out: Path) -> None:
    """Begins a folder, or finds that it was begun with the same config."""
    require_replaceable(out)
    file, wanted = out / "config.json", json.loads(json.dumps(asdict(config)))
    if file.is_file() and json.loads(file.read_text()) != wanted:
        raise DataError(f"{out}: holds plantings of another config; name another folder")
    write_json(file, wanted)
    mark_replaceable(out)


def _record(
    gold: Any, target: Target, place: Place | None, config: LocaliseConfig, seed: int
) -> dict[str, Any]:
    """One planting, and what every way says of it; without a place, of the gold itself."""
    if place is None:
        facts = chosen_facts(target, config.plant.entities, seed)
        found = search(gold, gold, target, facts, config, seed)
        return {"place": None, "seed": seed, "found": found}
    planted = plant(gold, target, place, config.plant, seed)
    return {
        "place": asdict(place),
        "seed": seed,
        "facts": len(planted.facts),
        "neurons": planted.neurons.tolist(),
        "open": planted.open,
        "audit": planted.audit,
        "retained": planted.retained,
        "found": search(planted.model, gold, target, planted.facts, config, seed),
    }


def search(
    model: Any,
    gold: Any,
    target: Target,
    facts: Sequence[Fact],
    config: LocaliseConfig,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Scores of every way, as JSON has them."""
    asked = Asked.of(model, target, facts, config.prompts, seed)
    found: dict[str, Found] = {
        "causal tracing": causal_tracing(model, asked, seed),
        "attribution": attribution(model, asked, seed),
        **by_gradients(model, asked, seed),
        **(by_features(model, asked, seed, config.samples) if config.samples else {}),
        CHECK: change_of_weights(model, gold),
    }
    return {
        way: {n: v.tolist() for n, v in vars(f).items() if v is not None}
        for way, f in found.items()
    }


def rows_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each way finds of each planting, and the unplanted gold against the same places."""
    unplanted = {r["seed"]: r["found"] for r in records if r["place"] is None}
    rows = []
    for record in records:
        if record["place"] is None or record["open"] < LEAST:
            continue
        place, seed = Place(**record["place"]), record["seed"]
        for planted, found in ((True, record["found"]), (False, unplanted[seed])):
            named = {"planted": planted, "seed": seed, **asdict(place)}
            for way, scores in found.items():
                if way == CHECK and not planted:
                    continue
                before = unplanted[seed][way] if planted and way != CHECK else None
                rows += [
                    {**named, "way": way, "measure": measure, "value": value}
                    for measure, value in measured(scores, place, record["neurons"], before)
                ]
    return rows


def measured(
    scores: dict[str, Any], place: Place, neurons: Sequence[int], before: dict[str, Any] | None
) -> Iterator[tuple[str, float]]:
    """How one way's scores stand to the truth.

    With one true layer or component, precision and recall of the best are both whether it is the
    true one. For neurons both are taken at their true number.

    Args:
        before: the same scores of the unplanted gold, for `beside gold`: the component whose share
            of all scores has grown most.
    """
    yield "layer", float(torch.tensor(scores["layers"]).argmax() == place.layer)
    if "components" not in scores:
        return
    truth = place.layer * len(PARTS) + list(PARTS).index(place.part)
    found = torch.tensor(scores["components"]).flatten()
    yield "component", float(found.argmax() == truth)
    yield "component AUROC", auroc(found, torch.arange(len(found)) == truth)
    if before is not None:
        other = torch.tensor(before["components"]).flatten()
        grown = found / found.abs().sum() - other / other.abs().sum()
        yield "component beside gold", float(grown.argmax() == truth)
    if "neurons" in scores and neurons:
        each = torch.tensor(scores["neurons"])
        true = torch.zeros(each.shape, dtype=torch.bool)
        true[place.layer, list(neurons)] = True
        best = each.flatten().topk(len(neurons)).indices
        yield "neurons", true.flatten()[best].double().mean().item()
        yield "neurons AUROC", auroc(each.flatten(), true.flatten())


def auroc(scores: Float[Tensor, " k"], truth: Bool[Tensor, " k"]) -> float:
    """Share of pairs of a true and another one in which the true one scores higher."""
    ranks = torch.from_numpy(stats.rankdata(scores.double().numpy()))
    n, k = int(truth.sum()), len(truth)
    return float((ranks[truth].sum() - n * (n + 1) / 2) / (n * (k - n)))


MEASURES = (
    "layer", "component", "component AUROC", "component beside gold", "neurons", "neurons AUROC",
)  # fmt: skip


def table(frame: pd.DataFrame, records: Sequence[dict[str, Any]]) -> str:
    """Markdown: what was planted, what each way finds, by kind, and where it points by habit."""
    return "\n\n".join(
        [
            "### Plantings (recall of the planted facts in training and audit templates, of R_va)",
            _plantings(records),
            "### What each way finds (share of plantings, 95 % Wilson interval; in the lower half "
            "the unplanted golds against the same places)",
            _found(frame),
            "### True component found, by kind",
            _by_kind(frame),
            "### Component that each way names in the unplanted golds",
            _habits(records),
        ]
    )


def _plantings(records: Sequence[dict[str, Any]]) -> str:
    lines = [
        [Place(**r["place"]).name, str(r["seed"]), str(r["facts"]),
         *(f"{r[n]:.2f}" for n in ("open", "audit", "retained")),
         "yes" if r["open"] >= LEAST else "no"]
        for r in records if r["place"] is not None
    ]  # fmt: skip
    return _markdown(["place", "seed", "facts", "open", "audit", "R_va", "counts"], lines)


def _found(frame: pd.DataFrame) -> str:
    lines = []
    for planted, way in itertools.product((True, False), frame["way"].unique()):
        some = frame[(frame["planted"] == planted) & (frame["way"] == way)]
        if len(some):
            cells = [_cell(some[some["measure"] == m]["value"], m) for m in MEASURES]
            lines.append([way if planted else f"{way}, unplanted", *cells])
    return _markdown(["way", *MEASURES], lines)


def _cell(values: Any, measure: str) -> str:
    if not len(values):
        return ""
    mean = float(values.mean())
    if "AUROC" in measure or measure == "neurons":
        return f"{mean:.2f}"
    hits = stats.binomtest(round(values.sum()), len(values)).proportion_ci(method="wilson")
    return f"{mean:.2f} [{hits.low:.2f}, {hits.high:.2f}]"


def _by_kind(frame: pd.DataFrame) -> str:
    some = frame[frame["planted"] & (frame["measure"] == "component")]
    kinds = list(dict.fromkeys(some["kind"]))
    lines = []
    for way, mine in some.groupby("way", sort=False):
        parts = [mine[mine["kind"] == kind]["value"].tolist() for kind in kinds]
        lines.append([str(way), *(f"{sum(v):g} of {len(v)}" for v in parts)])
    return _markdown(["way", *kinds], lines)


def _habits(records: Sequence[dict[str, Any]]) -> str:
    unplanted = [r["found"] for r in records if r["place"] is None]
    lines = []
    for way, scores in unplanted[0].items() if unplanted else ():
        if "components" in scores and way != CHECK:
            best = [int(torch.tensor(u[way]["components"]).argmax()) for u in unplanted]
            names = [f"{list(PARTS)[b % len(PARTS)]} {b // len(PARTS)}" for b in best]
            lines.append([way, ", ".join(names)])
    return _markdown(["way", "component, by seed"], lines)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Sixteen plantings and a control; about seven minutes on a quiet core."""
    torch.set_num_threads(1)
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/localise")
    run(LocaliseConfig(), out, lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    sys.stdout.write((out / "table.md").read_text())


if __name__ == "__main__":
    main()
