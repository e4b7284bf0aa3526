"""The protocol on any model, SAE, questions and corpora."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from workbench.experiments.saebench.features import (
    Rows,
    firing_frequencies,
    require_unit_rows,
    top_features,
)
from workbench.experiments.saebench.questions import ChoiceQuestion, Quiz, known
from workbench.experiments.saebench.scores import (
    SAEBenchConfig,
    SAEBenchResult,
    SAEBenchTrial,
    Scored,
    best_trial,
    held_out,
    score,
)
from workbench.hooks import edited
from workbench.interventions import Clamp, but_bos
from workbench.sae.load import require_fit
from workbench.sae.matched import matched_features

Say = Callable[[str], None]


def saebench(
    model: Any,
    sae: Any,
    questions: tuple[Sequence[ChoiceQuestion], Sequence[ChoiceQuestion]],
    corpora: tuple[Rows, Rows],
    config: SAEBenchConfig | None = None,
    say: Say = lambda line: None,
) -> SAEBenchResult:
    """SAEBench's unlearning score of an SAE, on held-out questions too, and of random features.

    Args:
        questions: to be forgotten, and to be kept.
        corpora: rows of tokens, BOS first, of forget and of retain text; `concatenated_rows` cuts
            them as SAEBench does.

    Raises:
        SAEError: the SAE belongs to other weights, or carries no densities and largest activations
            to match random features by: train it here, or ask for `controls=0`.
        EditError: its decoder rows are not of norm 1.
        DataError: a corpus or the questions have nothing in them to go by.
    """
    config = config or SAEBenchConfig()
    require_fit(sae, model)
    require_unit_rows(sae)
    say("ask the unmodified model")
    forget, side = (known(model, asked) for asked in questions)
    quizzes = tuple(Quiz(model, [(q, 0) for q in kept]) for kept in (forget, side))
    groups = [q.group for q in forget], [q.group for q in side]
    say("count how often features fire")
    often, elsewhere = (firing_frequencies(model, sae, rows) for rows in corpora)
    ranked = {t: top_features(often, elsewhere, t) for t in config.retain_thresholds}

    def scored(features: Mapping[float, Sequence[int]], name: str) -> Scored:
        say(f"clamp {name}")
        trials, hits = [], []
        for threshold, n, multiplier in config.settings():
            some = list(features[threshold][:n])
            hits.append(_clamped_hits(model, sae, some, multiplier, quizzes))
            left, kept = (float(h.mean()) for h in hits[-1])
            trials.append(SAEBenchTrial(threshold, n, multiplier, tuple(some), left, kept))
        on_forget, on_side = (np.stack(h) for h in zip(*hits, strict=True))
        best = best_trial(on_forget, on_side, config.min_side_effect)
        split = held_out(on_forget, on_side, groups, config)
        return Scored(tuple(trials), best, score(on_forget, best), split)

    chosen = scored(ranked, "the features that fire most")
    controls = [
        scored(_random_in_place(sae, ranked, config, draw), f"random features, draw {draw + 1}")
        for draw in range(config.controls)
    ]
    counts = (len(forget), len(questions[0]), len(side), len(questions[1]))
    return SAEBenchResult(sae.cfg.metadata.hook_name, config, chosen, tuple(controls), *counts)


def _clamped_hits(
    model: Any, sae: Any, features: Sequence[int], multiplier: int | float, quizzes: Sequence[Quiz]
) -> tuple[np.ndarray, ...]:
    """Whether each question of each quiz is answered right under the clamp.

    With no feature to clamp, nothing is changed.
    """
    edits = []
    if features:
        clamp = Clamp(sae, torch.tensor(features), -float(multiplier), "active", "absolute")
        edits.append(but_bos(clamp))
    with edited(model, edits):
        return tuple(quiz.hits().numpy() for quiz in quizzes)


def _random_in_place(
    sae: Any, ranked: Mapping[float, Sequence[int]], config: SAEBenchConfig, draw: int
) -> dict[float, list[int]]:
    """A matched random feature in the place of each that is clamped in any trial."""
    most, seed = max(config.n_features_list), config.random_seed + draw
    return {
        threshold: matched_features(sae, torch.tensor(features[:most]), seed).tolist()
        if features
        else []
        for threshold, features in ranked.items()
    }
