"""Behavioural questions: can what was to be forgotten still be asked for?"""

from workbench.audit.questions.families import CHANCE, FAMILIES, FORMATS, KAPPA_CHANCE, questions
from workbench.audit.questions.kept import retained_sets
from workbench.audit.questions.sampling import leak_at
from workbench.audit.questions.scorer import centred_hits, raw_hits

__all__ = [
    "CHANCE",
    "FAMILIES",
    "FORMATS",
    "KAPPA_CHANCE",
    "centred_hits",
    "leak_at",
    "questions",
    "raw_hits",
    "retained_sets",
]
