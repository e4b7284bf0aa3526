"""Training sparse autoencoders: several at once from one read of the data, exactly resumable."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file
from torch import Tensor
from torch import distributed as dist
from tqdm.auto import tqdm

from workbench.activations import Activations, ActivationStream
from workbench.activations.chunks import chunks
from workbench.artifacts import new_folder, require_replaceable, write_json
from workbench.errors import SAEError
from workbench.hooks import Site
from workbench.models.load import model_name, tokenizer_sha256, weights_sha256
from workbench.sae.calibrate import calibrated_threshold
from workbench.sae.checkpoint import Checkpoints, interrupts_noted
from workbench.sae.config import TrainConfig, held_out, new_sae, require_possible
from workbench.sae.fit import Fit, ranks_of
from workbench.sae.load import STATS_FILE, load_sae
from workbench.sae.logs import Log
from workbench.sae.metrics import density_histogram, feature_stats, reconstruction

MEASURED_BYTES = 2**28
"""Rows that statistics, thresholds and held-out metrics are taken on, where there are so many."""
STREAMED_ROWS = 2**12
"""The same of a stream, which cannot tell how many it has; those of a small one come again."""
SHOWN_EVERY = 20


def train_sae(
    acts: Activations | ActivationStream,
    config: TrainConfig | None = None,
    out: Path | str | None = None,
    **options: Any,
) -> SAE:
    """Trains one SAE; saves it in the SAELens format with recipe, metrics and statistics.

    Args:
        acts: activations of one site.
        out: folder to save to, written whole or not at all; default: the activations' folder with
            `-sae` behind its name.
        options: as `train_saes` takes them.

    Returns:
        The saved SAE, as `load_sae` reads it.

    Raises:
        SAEError: as `train_saes`; a stream of several sites, or one without `out`.
        DataError: `out` holds what the workbench did not write.
    """
    if isinstance(acts, ActivationStream) and (out is None or len(acts.sites) != 1):
        raise SAEError("a stream has no folder: give `out`, and one site (train_saes takes more)")
    place = Path(out) if out else acts.folder.with_name(f"{acts.folder.name}-sae")  # pyright: ignore[reportAttributeAccessIssue]
    source = Source.of(acts)
    (saved,) = _train(source, {place: (source.sites[0], config or TrainConfig())}, **options)
    return saved


def train_saes(
    acts: Activations | Sequence[Activations] | ActivationStream,
    configs: Mapping[str, TrainConfig],
    out: Path | str,
    **options: Any,
) -> dict[tuple[str, str], SAE]:
    """Trains an SAE of every configuration at every site, side by side, from one read of the data.

    On a CPU the same arguments give the same weights. A run that was killed or interrupted
    goes on from its last checkpoint when called again, and ends with the same bits on a CPU as one
    that was not.

    Args:
        acts: activations of one harvest, a site each; or a stream, whose texts are read more than
            once (a list or a dataset, not an iterator) and again from the start on resuming.
        configs: by the name of the folder that each SAE gets in that of its site. Batch size,
            samples, held-out share and seed decide the data and must be the same in all.
        out: folder of the sites' folders.
        options: `device`; `checkpoint_every` steps (default 1,000); `progress`; `log`, a function
            of the step and its figures, called every 20 steps (`workbench.sae.logs` has some).

    Returns:
        The saved SAEs by site and name, as `load_sae` reads them.

    Raises:
        SAEError: fewer activations than one batch, or than features, each of which starts at one;
        impossible settings; a checkpoint of other data or settings.
        DataError: `out` holds what the workbench did not write.
    """
    source, places = Source.of(acts), {}
    for site in source.sites:
        for name, config in configs.items():
            places[Path(out) / site.name / name] = (site, config)
    trained = _train(source, places, **options)
    names = [(site.name, path.name) for path, (site, _) in places.items()]
    return dict(zip(names, trained, strict=True))


@dataclass(frozen=True)
class Source:
    """Activations on disk or from a model, read alike: one batch of each site at a time."""

    sites: tuple[Site, ...]
    batches: Callable[..., Iterator[dict[Site, Tensor]]]
    count: Callable[[Any], int] | None
    origin: dict[Site, dict[str, Any]]

    @classmethod
    def of(cls, acts: Activations | Sequence[Activations] | ActivationStream) -> "Source":
        if isinstance(acts, ActivationStream):
            if isinstance(acts.source, Iterator):
                raise SAEError(
                    "the stream's texts are an iterator, which can be read once; training reads "
                    "them several times, so give a list or a dataset"
                )
            origin = {
                "model_name": model_name(acts.model),
                "model_sha256": weights_sha256(acts.model),
                "tokenizer_sha256": tokenizer_sha256(acts.model.tokenizer),
                "reading": asdict(acts.reading),
                "first_texts_sha256": next(chunks(acts.model, acts.source, acts.reading)).sha256,
            }
            return cls(acts.sites, acts.batches, None, dict.fromkeys(acts.sites, origin))
        all_acts = [acts] if isinstance(acts, Activations) else list(acts)
        _require_one_harvest(all_acts)
        first = all_acts[0]

        def batches(*given: Any, **options: Any) -> Iterator[dict[Site, Tensor]]:
            together = zip(*(a.batches(*given, **options) for a in all_acts), strict=True)
            for rows in together:
                yield {a.site: r for a, r in zip(all_acts, rows, strict=True)}

        sites = tuple(a.site for a in all_acts)
        return cls(sites, batches, first.count, {a.site: asdict(a.card) for a in all_acts})


def _require_one_harvest(acts: Sequence[Activations]) -> None:
    if not acts or len({a.site for a in acts}) < len(acts):
        raise SAEError(
            f"activations of {[a.card.site for a in acts]}: wanted one or more, each of another "
            "site"
        )
    first = acts[0]
    for other in acts[1:]:
        for what in ("model_sha256", "tokenizer_sha256", "tokens", "documents", "special_tokens"):
            given, wanted = (getattr(a.card, what) for a in (other, first))
            if given != wanted:
                raise SAEError(
                    f"{other.folder}: {what} is {given}, in {first.folder} it is {wanted}; wanted "
                    "activations of one harvest"
                )


def _train(
    source: Source,
    places: Mapping[Path, tuple[Site, TrainConfig]],
    *,
    device: str = "cpu",
    checkpoint_every: int = 1000,
    progress: bool = True,
    log: Log | None = None,
) -> list[SAE]:
    config = _common([config for _, config in places.values()])
    for path in places:
        require_replaceable(path)
    kept = held_out(config)
    _require_enough(source, [config for _, config in places.values()], kept)
    fits = _new_fits(source, places, device, kept)
    checkpoints = Checkpoints(next(iter(places)), _made_from(source, places))
    start = checkpoints.load(fits)
    rank, ranks = ranks_of()
    if ranks > 1 and (source.count is None or config.batch_size % ranks):
        raise SAEError(
            f"{ranks} processes: wanted activations on disk, of which each reads its part, and a "
            f"batch size (given: {config.batch_size}) that they can share equally"
        )
    batches = source.batches(
        config.batch_size,
        config.seed,
        documents=lambda document: ~kept(document),
        start=start,
        **({"rank": rank, "ranks": ranks} if ranks > 1 else {}),
    )
    with (
        interrupts_noted() as noted,
        tqdm(
            total=config.steps * config.batch_size,
            initial=start * config.batch_size,
            desc="train sae",
            unit="token",
            unit_scale=True,
            disable=not progress or rank > 0,
        ) as bar,
    ):
        for step, batch in enumerate(islice(batches, config.steps - start), start):
            for fit in fits.values():
                fit.step(batch[fit.site], step)
            stop = _agreed(bool(noted), device)
            bar.update(config.batch_size)
            done = step + 1
            if done % SHOWN_EVERY == 0 or done == config.steps:
                _show(bar, fits, log, done)
            if stop or done % checkpoint_every == 0 or done == config.steps:
                checkpoints.save(fits, done)
            if stop:
                raise KeyboardInterrupt(
                    f"training stopped after step {done}; run it again to go on"
                )
    saved = [_save(source, path, fit, config, kept) for path, fit in fits.items()]
    checkpoints.delete()
    return saved


def _common(configs: Sequence[TrainConfig]) -> TrainConfig:
    if not configs:
        raise SAEError("no settings were given: wanted one TrainConfig or more")
    for config in configs:
        require_possible(config)
    shared = {(c.batch_size, c.steps, c.held_out, c.seed) for c in configs}
    if len(shared) != 1:
        raise SAEError(
            f"{len(shared)} ways to read the data (batch size, steps, held-out share, seed): "
            f"{sorted(shared)}; SAEs that are trained side by side share one"
        )
    return configs[0]


def _require_enough(source: Source, configs: Sequence[TrainConfig], kept: Any) -> None:
    if source.count is None:  # what is measured at the end has to be there before the work begins
        _some_rows(source, source.sites[0], configs[0], kept)
        return
    given = source.count(lambda document: ~kept(document))
    features = max(c.d_sae for c in configs)
    wanted, apart = max(configs[0].batch_size, features), source.count(kept)
    if given < wanted or apart < 2:
        raise SAEError(
            f"{given} training activations; wanted {wanted} or more, for batches of "
            f"{configs[0].batch_size} and {features} features; and {apart} held out, wanted two or "
            f"more (share {configs[0].held_out:g} of the documents): harvest more texts"
        )


def _new_fits(
    source: Source, places: Mapping[Path, tuple[Site, TrainConfig]], device: str, kept: Any
) -> dict[Path, Fit]:
    config = next(iter(places.values()))[1]
    size = max(max(c.batch_size, c.d_sae) for _, c in places.values())
    sample = next(source.batches(size, config.seed, documents=lambda d: ~kept(d)))
    fits = {}
    for path, (site, own) in places.items():
        metadata = SAEMetadata(
            hook_name=site.name,
            model_name=source.origin[site]["model_name"],
            model_sha256=source.origin[site]["model_sha256"],
            prepend_bos=True,
        )
        rows = sample[site].float()
        norm = rows.norm(dim=-1).mean().item()
        scale = rows.shape[1] ** 0.5 / norm if own.normalize and norm > 0 else 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own.seed)
            fits[path] = Fit(new_sae(own, metadata, rows * scale), own, site, scale, device)
    return fits


def _made_from(source: Source, places: Mapping[Path, tuple[Site, TrainConfig]]) -> str:
    """Hash of what decides the result, so that a checkpoint is not taken up by another run."""
    parts = [
        (path.name, site.name, asdict(config), source.origin[site])
        for path, (site, config) in places.items()
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _agreed(stop: bool, device: str) -> bool:
    """Whether any process was interrupted: all stop after the same step."""
    if ranks_of()[1] == 1:
        return stop
    flag = torch.tensor([float(stop)], device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def _show(bar: tqdm, fits: Mapping[Path, Fit], log: Log | None, step: int) -> None:
    figures = {path: fit.figures() for path, fit in fits.items()}
    first = next(iter(figures.values()))
    bar.set_postfix({k: f"{first[k]:.3g}" for k in ("loss", "fvu", "l0", "dead")})
    if log is not None and ranks_of()[0] == 0:
        prefix = {
            path: f"{path.parent.name}/{path.name}/" if len(fits) > 1 else "" for path in fits
        }
        log(step, {prefix[p] + k: v for p, found in figures.items() for k, v in found.items()})


def _save(source: Source, out: Path, fit: Fit, config: TrainConfig, kept: Any) -> SAE:
    """Calibrates, folds the scale, measures, and saves."""
    if ranks_of()[0] > 0:
        dist.barrier()
        return load_sae(out)
    sae, trained_l0 = fit.sae, fit.l0()
    rows, kept_rows = (
        _some_rows(source, fit.site, config, documents).to(fit.device)
        for documents in (lambda document: ~kept(document), kept)
    )
    if isinstance(sae, BatchTopKTrainingSAE):
        threshold = calibrated_threshold(sae, rows * fit.scale)
        sae.topk_threshold = torch.tensor(threshold, dtype=torch.double)
    sae.cfg.metadata.l0 = trained_l0
    sae.W_enc.data = sae.W_enc.data.contiguous()
    if fit.scale != 1.0:
        sae.fold_activation_norm_scaling_factor(fit.scale)
    with new_folder(out) as folder:
        sae.save_inference_model(str(folder))
        saved = SAE.load_from_disk(str(folder), device=str(fit.device))
        stats = {name: values.cpu() for name, values in feature_stats(saved, rows).items()}
        save_file(stats, folder / STATS_FILE)
        histogram = density_histogram(stats["density"], len(rows))
        recipe = {
            "config": asdict(fit.config),
            "activations": source.origin[fit.site],
            "held_out": reconstruction(saved, kept_rows),
            "trained": {"l0": trained_l0, "dead": fit.dead_share(), "steps": config.steps},
            "density": {
                "log10_edges": [round(e, 4) for e in histogram.edges.tolist()],
                "features": histogram.counts.tolist(),
                "never": histogram.never,
                "tokens": len(rows),
            },
            "torch": torch.__version__,
        }
        write_json(folder / "recipe.json", recipe)
    if ranks_of()[1] > 1:
        dist.barrier()
    return load_sae(out)


def _some_rows(source: Source, site: Site, config: TrainConfig, documents: Any) -> Tensor:
    """Up to 256 MiB of rows of these documents, in float32; of a stream, fewer."""
    if source.count is None:
        batches = islice(source.batches(STREAMED_ROWS // 64, config.seed, documents=documents), 64)
        return torch.cat([batch[site] for batch in batches]).float()
    size = min(MEASURED_BYTES // (4 * source.origin[site]["d_model"]), source.count(documents))
    return next(source.batches(size, config.seed, documents=documents))[site].float()


def read_recipe(folder: Path | str) -> dict[str, Any]:
    """The recipe and metrics saved beside an SAE."""
    return json.loads((Path(folder) / "recipe.json").read_text())
