"""SAEBench's unlearning score, and what is left of it on questions that had no part in the choice.

SAEBench clamps the features that fire most on a forget corpus in sixteen settings, and reports the
best of them on the questions it was picked by. Here the same is scored on held-out questions too,
and with random features in the place of the chosen ones.

Source: Karvonen et al. 2025, arXiv 2503.09532; Farrell et al. 2024, arXiv 2410.19278.
"""

from workbench.experiments.saebench.features import (
    concatenated_rows,
    firing_frequencies,
    top_features,
)
from workbench.experiments.saebench.protocol import saebench
from workbench.experiments.saebench.questions import (
    GEMMA,
    ChoiceQuestion,
    Quiz,
    fact_questions,
    known,
    letter_questions,
)
from workbench.experiments.saebench.scores import (
    SAEBenchConfig,
    SAEBenchResult,
    best_trial,
    halves,
    held_out,
    score,
)
from workbench.experiments.saebench.world import run, table, target_corpora, target_questions

__all__ = [
    "GEMMA",
    "ChoiceQuestion",
    "Quiz",
    "SAEBenchConfig",
    "SAEBenchResult",
    "best_trial",
    "concatenated_rows",
    "fact_questions",
    "firing_frequencies",
    "halves",
    "held_out",
    "known",
    "letter_questions",
    "run",
    "saebench",
    "score",
    "table",
    "target_corpora",
    "target_questions",
    "top_features",
]
