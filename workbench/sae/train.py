"""Training sparse autoencoders on harvested activations with SAELens' own classes and trainer."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import save_file

from workbench.activations import Activations
from workbench.artifacts import new_folder, require_replaceable, write_json
from workbench.errors import SAEError
from workbench.sae.load import STATS_FILE, load_sae
from workbench.sae.metrics import feature_stats, reconstruction


@dataclass(frozen=True)
class TrainConfig:
    """How an SAE is trained.

    Attributes:
        k: features active on each token (TopK).
        samples: activations seen in all, over as many epochs as that takes.
        dead_after: steps without firing after which the auxiliary loss revives a feature.
        held_out: share of the documents kept for the metrics.
    """

    d_sae: int = 1024
    k: int = 32
    samples: int = 2_500_000
    batch_size: int = 1024
    lr: float = 1e-3
    dead_after: int = 50
    held_out: float = 0.05
    seed: int = 0


def train_sae(
    acts: Activations, config: TrainConfig | None = None, out: Path | str | None = None
) -> SAE:
    """Trains a TopK SAE; saves it in the SAELens format with recipe, metrics and statistics.

    Args:
        out: folder to save to, written whole or not at all; default: `sae` inside the activations'
            folder.

    Returns:
        The saved SAE, as `load_sae` reads it.

    Raises:
        SAEError: fewer activations than one batch, or than features, each of which starts at one.
        DataError: `out` holds what the workbench did not write.
    """
    config, out = config or TrainConfig(), Path(out) if out else acts.folder / "sae"
    require_replaceable(out)
    rows, documents = acts.rows().float(), acts.where()[0]
    held_out = _held_out(documents, config)
    given, wanted = int((~held_out).sum()), max(config.batch_size, config.d_sae)
    if given < wanted:
        raise SAEError(
            f"{given} training activations; wanted {wanted} or more, for batches of "
            f"{config.batch_size} and {config.d_sae} features: harvest more texts"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sae = _new_sae(acts, config, rows[~held_out])
        _fit(sae, rows[~held_out], config)
    with new_folder(out) as folder:
        sae.save_inference_model(str(folder))
        saved = SAE.load_from_disk(str(folder))
        save_file(feature_stats(saved, rows[~held_out]), folder / STATS_FILE)
        metrics = reconstruction(saved, rows[held_out])
        recipe = {
            "config": asdict(config),
            "activations": asdict(acts.card),
            "held_out": metrics,
            "torch": torch.__version__,
        }
        write_json(folder / "recipe.json", recipe)
    return load_sae(out)


def _held_out(documents: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Mask of rows whose document is kept for the metrics, whole documents at a time."""
    n = int(documents.max()) + 1
    generator = torch.Generator().manual_seed(config.seed)
    chosen = torch.randperm(n, generator=generator)[: max(1, round(config.held_out * n))]
    return torch.isin(documents, chosen)


def _new_sae(acts: Activations, config: TrainConfig, rows: torch.Tensor) -> TopKTrainingSAE:
    metadata = SAEMetadata(
        hook_name=acts.card.site,
        model_name=acts.card.model_name,
        model_sha256=acts.card.model_sha256,
        prepend_bos=True,
    )
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=acts.card.d_model, d_sae=config.d_sae, k=config.k, metadata=metadata
        )
    )
    with torch.no_grad():
        sae.b_dec.copy_(rows.mean(0))
        generator = torch.Generator().manual_seed(config.seed)
        chosen = rows[torch.randperm(len(rows), generator=generator)[: config.d_sae]] - sae.b_dec
        sae.W_dec.copy_(chosen / chosen.norm(dim=-1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae


def _fit(sae: TopKTrainingSAE, rows: torch.Tensor, config: TrainConfig) -> None:
    def batches():
        generator = torch.Generator().manual_seed(config.seed)
        while True:
            order = torch.randperm(len(rows), generator=generator)
            for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
                yield rows[order[start : start + config.batch_size]]

    steps = config.samples // config.batch_size
    trainer_config = SAETrainerConfig(
        total_training_samples=steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=config.lr,
        lr_end=config.lr / 10,
        lr_decay_steps=steps // 3,
        lr_warm_up_steps=min(100, steps // 10),
        device="cpu",
        dead_feature_window=config.dead_after,
    )
    SAETrainer(cfg=trainer_config, sae=sae, data_provider=batches()).fit()


def read_recipe(folder: Path | str) -> dict[str, Any]:
    """The recipe and metrics saved beside an SAE."""
    return json.loads((Path(folder) / "recipe.json").read_text())
