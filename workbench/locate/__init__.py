"""Finding the features of a concept."""

from workbench.locate.concept import Concept, Contrast, Prompt
from workbench.locate.effect import Effects, exact_effects
from workbench.locate.features import ConceptFeatures, Evidence, locate, rank
from workbench.locate.joint import Goal, JointChoice, choose_jointly
from workbench.locate.scores import Method, measure, saebench_filter

__all__ = [
    "Concept",
    "ConceptFeatures",
    "Contrast",
    "Effects",
    "Evidence",
    "Goal",
    "JointChoice",
    "Method",
    "Prompt",
    "choose_jointly",
    "exact_effects",
    "locate",
    "measure",
    "rank",
    "saebench_filter",
]
