"""Sparse autoencoders: training, opening, measuring."""

from workbench.sae.load import load_sae
from workbench.sae.train import TrainConfig, train_sae

__all__ = ["TrainConfig", "load_sae", "train_sae"]
