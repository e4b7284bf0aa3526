"""The protocol on a bundled world."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from workbench.artifacts import new_folder, require_replaceable, write_json
from workbench.errors import TargetError
from workbench.experiments.choose import ChooseConfig, sampled_by_kind
from workbench.experiments.saebench.protocol import saebench
from workbench.experiments.saebench.questions import ChoiceQuestion, fact_questions
from workbench.experiments.saebench.scores import SAEBenchConfig, SAEBenchResult
from workbench.facts import load_facts
from workbench.facts.mentions import name_finder
from workbench.facts.target import Target
from workbench.models import load_model
from workbench.models.load import versions, weights_sha256
from workbench.sae.load import bundled_saes, load_sae

Say = Callable[[str], None]


def target_questions(
    target: Target, sample: int = 120, seed: int = 0
) -> tuple[tuple[ChoiceQuestion, ...], tuple[ChoiceQuestion, ...]]:
    """Questions about the S fold, and about retained facts of each kind outside R_te.

    The V fold, on which audits are scored, has no part.

    Raises:
        TargetError: one of the two is empty.
    """
    forget = fact_questions(target.facts, target.fold("S"))
    kinds = sampled_by_kind(target, ChooseConfig(sample=sample, seed=seed), exclude=("R_te",))
    side = fact_questions(target.facts, [f for facts in kinds.values() for f in facts])
    if not forget or not side:
        raise TargetError(
            f"target {target.name!r} has no {'retained' if forget else 'S fold'} facts with "
            "audit-only templates to ask for"
        )
    return forget, side


def target_corpora(target: Target, tokenizer: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Texts about T, and texts that name nothing that is to be forgotten; one row a text.

    Texts that name an entity of S or V are in neither, so that no feature is picked on what is
    asked for.

    Raises:
        TargetError: one of the two is empty.
    """
    find, allowed = name_finder(target.entities), set(target.folds["T"])
    forget, retain = [], []
    for text in (d.text for d in target.facts.corpus):
        named = find(text)
        if allowed.issuperset(named):
            (forget if named else retain).append(text)
    if not forget or not retain:
        raise TargetError(
            f"target {target.name!r}: no texts {'without' if forget else 'about T without other'} "
            "entities that are to be forgotten"
        )
    return tokenizer(forget)["input_ids"], tokenizer(retain)["input_ids"]


def run(
    config: SAEBenchConfig,
    out: Path | str,
    say: Say = lambda line: None,
    *,
    world: str = "valley",
    target: str = "toxins",
) -> list[SAEBenchResult]:
    """Scores all SAEs of a bundled world; writes `config.json` and `saebench.json` to `out`.

    `out` appears only when both are there.

    Raises:
        DataError: `out` holds what the workbench did not write.
    """
    require_replaceable(out)
    model, wanted = load_model(world), load_facts(world).target(target)
    questions, corpora = target_questions(wanted), target_corpora(wanted, model.tokenizer)
    results = []
    for name in (n for n in bundled_saes() if n.startswith(f"{world}/")):
        say(name)
        results.append(saebench(model, load_sae(name), questions, corpora, config, say))
    provenance = {"model_sha256": weights_sha256(model), "versions": versions()}
    with new_folder(out) as folder:
        write_json(
            folder / "config.json",
            {"world": world, "target": target, **asdict(config), **provenance},
        )
        write_json(folder / "saebench.json", [result.as_dict() for result in results])
    return results


def table(results: Sequence[SAEBenchResult]) -> str:
    """Scores in Markdown, a row for each SAE and way to pick features; random ones are averaged."""
    lines = [
        "| SAE, features | in-sample | held out | choosing half / other half | keeps the limit |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        split = result.features.held_out
        interval = f" [{split.low:.3f}, {split.high:.3f}], n {split.n_questions}"
        rows = [("most firing", interval, (result.features,))]
        rows += [(f"random, {len(result.controls)} draws", "", result.controls)] * bool(
            result.controls
        )
        for name, interval, scored in rows:
            halved = [s.held_out for s in scored]
            cells = [
                f"{result.site}, {name}",
                f"{np.mean([s.unlearning_score for s in scored]):.3f}",
                f"{np.mean([h.unlearning_score for h in halved]):.3f}{interval}",
                f"{np.mean([h.mean_choosing_score for h in halved]):.3f} / "
                f"{np.mean([h.mean_unlearning_score for h in halved]):.3f}",
                f"{np.mean([h.share_qualified for h in halved]):.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
