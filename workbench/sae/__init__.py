"""Sparse autoencoders: training, opening, measuring, checking against a model."""

from workbench.sae.check import SAECheck, check_sae
from workbench.sae.config import TrainConfig
from workbench.sae.load import load_sae
from workbench.sae.train import train_sae, train_saes

__all__ = ["SAECheck", "TrainConfig", "check_sae", "load_sae", "train_sae", "train_saes"]
