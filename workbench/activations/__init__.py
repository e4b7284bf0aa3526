"""Activations: from texts to shuffled minibatches of the residual stream."""

from workbench.activations.harvest import harvest
from workbench.activations.store import Activations, ActivationsCard
from workbench.activations.stream import ActivationStream

__all__ = ["ActivationStream", "Activations", "ActivationsCard", "harvest"]
