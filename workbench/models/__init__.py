"""Models: loading them, training them, their golds, and what they know."""

from workbench.models.copies import copied
from workbench.models.golds import corpus_without, golds
from workbench.models.load import load_golds, load_model, read_recipe, resolve, weights_sha256
from workbench.models.score import answer, ask, recall
from workbench.models.train import LMConfig, train_lm

__all__ = [
    "LMConfig",
    "answer",
    "ask",
    "copied",
    "corpus_without",
    "golds",
    "load_golds",
    "load_model",
    "read_recipe",
    "recall",
    "resolve",
    "train_lm",
    "weights_sha256",
]
