"""Training against SAELens' trainer: time of a step, quality after equal steps, peak memory."""

import json
import statistics
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer

from workbench.activations import harvest
from workbench.facts import load_facts
from workbench.hooks import Site
from workbench.models import load_model
from workbench.sae import TrainConfig, train_sae
from workbench.sae.config import CLASSES, held_out, new_sae
from workbench.sae.fit import Fit
from workbench.sae.metrics import reconstruction
from workbench.sae.train import read_recipe

from .planted import sparse_rows, write
from .timing import record, speed

BIG = TrainConfig(d_sae=16_384, k=32, batch_size=4096, samples=4096 * 1000, dead_after=1000)
SMALL = replace(BIG, d_sae=4096, batch_size=2048, samples=2048 * 1000)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def theirs_of(config, sae, batches):
    """SAELens' trainer with the same schedule."""
    settings = SAETrainerConfig(
        total_training_samples=config.steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=config.lr,
        lr_end=config.lr / 10,
        lr_warm_up_steps=min(100, config.steps // 10),
        lr_decay_steps=config.steps // 3,
        device=DEVICE,
        dead_feature_window=config.dead_after,
    )
    return SAETrainer(cfg=settings, sae=sae.to(DEVICE), data_provider=batches)


def untrained(config, rows):
    torch.manual_seed(0)
    return new_sae(config, SAEMetadata(hook_name="blocks.0.hook_resid_post"), rows)


def step_of_both(config, width):
    rows = sparse_rows(max(config.batch_size, config.d_sae), width, 2 * width, 10)
    batch = rows[: config.batch_size].to(DEVICE)

    def endless():
        while True:
            yield batch

    peer = theirs_of(config, untrained(config, rows), endless())
    fit = Fit(untrained(config, rows), config, Site(0), 1.0, DEVICE)
    number = iter(range(10**9))

    def ours():
        fit.step(batch, next(number))
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    def theirs():
        peer.step(batch)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return ours, theirs


def test_topk_step():
    ours, theirs = step_of_both(BIG, 512)
    assert speed(
        "TopK training step, d 512, F 16,384, k 32, batch 4,096",
        "SAELens' SAETrainer",
        "≥ 4" if DEVICE == "cpu" else "≥ 2",
        ours,
        theirs,
        "arithmetic: one encoder product (69 GFLOP) where the peer makes six dense ones",
        repeats=5,
        unit=(BIG.batch_size, "token"),
    )


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "topk"])
def test_other_steps(name):
    config = replace(SMALL, architecture=name, sparsity=0.1)
    ours, theirs = step_of_both(config, 256)
    sparse = "topk" in name
    assert speed(
        f"{name} training step, d 256, F 4,096, batch 2,048",
        "SAELens' SAETrainer",
        "≥ 1",
        ours,
        theirs,
        "arithmetic: one encoder product and a search of the batch's largest"
        if sparse
        else "arithmetic: SAELens' own forward pass and its autograd, which both sides run; ours "
        "has a fused optimizer and fewer statistics",
        repeats=7,
        unit=(config.batch_size, "token"),
    )


QUALITY = {
    "planted sparse data": TrainConfig(d_sae=512, k=8, samples=400_000, batch_size=1024),
    "the bundled world": TrainConfig(d_sae=1024, k=32, samples=1_000_000, batch_size=1024),
}


@pytest.mark.parametrize("data", list(QUALITY))
def test_quality_after_equal_steps(data, tmp_path):
    if data == "the bundled world":
        facts, model = load_facts("valley"), load_model("valley")
        (acts,) = harvest(model, facts.corpus, Site(1), tmp_path / "acts")
    else:
        acts = write(tmp_path / "acts", sparse_rows(100_000, 64, 256, 6))
    fvus, dead = [], []
    for seed in range(3):
        config = replace(QUALITY[data], seed=seed)
        train_sae(acts, config, tmp_path / f"sae-{seed}", device=DEVICE)
        ours = read_recipe(tmp_path / f"sae-{seed}")["held_out"]
        theirs = theirs_trained(acts, config)
        fvus.append(ours["fvu"] / theirs["fvu"])
        dead.append((ours["dead"], theirs["dead"]))
    shares = [statistics.mean(share) for share in zip(*dead, strict=True)]
    assert record(
        f"FVU of a TopK SAE after {config.steps} steps, {data}",
        "SAELens' SAETrainer with its own start, same steps, batch and rates",
        "≤ 1",
        fvus,
        f"FVU {ours['fvu']:.4f}; dead on held-out rows {shares[0]:.1%} against {shares[1]:.1%}",
        "the same loss and optimizer; ours starts features at activations",
    )


def theirs_trained(acts, config):
    """SAELens' own initial weights and trainer on the same training rows; the same metrics."""
    kept = held_out(config)
    cls, config_cls = CLASSES[config.architecture]
    torch.manual_seed(config.seed)
    sae = cls(config_cls(d_in=acts.card.d_model, d_sae=config.d_sae, k=config.k))
    batches = acts.batches(config.batch_size, config.seed, documents=lambda d: ~kept(d))
    theirs_of(config, sae, (batch.to(DEVICE) for batch in batches)).fit()
    return reconstruction(sae.cpu(), acts.rows()[kept(acts.where()[0])].float())


MEMORY = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.bench.bench_train import BIG, step_of_both
ours, theirs = step_of_both(BIG, 512)
def peak():  # of this process alone, in KiB; getrusage's is handed down from the parent
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1])
Path("/proc/self/clear_refs").write_text("5")
before = peak()
for _ in range(3):
    (ours if sys.argv[1] == "ours" else theirs)()
print(json.dumps([before, peak()]))
"""


def test_peak_memory_of_training():
    """Peak above what stands before the first step: two SAEs and the batch."""
    peaks = {}
    for side in ("ours", "theirs"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", MEMORY, side],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        before, after = json.loads(done.stdout.splitlines()[-1])
        peaks[side] = after - before
    assert record(
        "peak memory of TopK training, d 512, F 16,384, k 32, batch 4,096",
        "SAELens' SAETrainer",
        "≤ 0.7",
        [peaks["ours"] / peaks["theirs"]],
        f"{peaks['ours'] / 2**20:.2f} GiB above the start, theirs {peaks['theirs'] / 2**20:.2f}",
        "gradients and Adam's moments, 0.2 GiB; pre-activations are held 32 MiB at a time",
    )
