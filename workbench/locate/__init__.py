"""Finding the features of a concept."""

from workbench.locate.features import ConceptFeatures, locate

__all__ = ["ConceptFeatures", "locate"]
