"""How long gathering dashboards takes, and opening a page and features of a large dictionary."""

import resource
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from sae_lens import TopKSAE, TopKSAEConfig

from workbench.dashboards import DashboardConfig, Dashboards, make_dashboards
from workbench.dashboards.events import read_corpus
from workbench.facts import load_facts
from workbench.hooks import Site, residuals
from workbench.models import load_model, weights_sha256
from workbench.models.score import batches_by_length
from workbench.report.browser.figures import feature_figures, map_figure
from workbench.report.browser.view import View, rows

from .timing import speed

SITE = "blocks.1.hook_resid_post"
TOKENS = 50_000


def random_sae(model: Any, d_sae: int, k: int = 32) -> Any:
    """A TopK SAE that nothing trained: what it costs does not depend on what it means."""
    config = TopKSAEConfig(d_in=model.cfg.d_model, d_sae=d_sae, k=k)
    config.metadata.hook_name = SITE
    config.metadata.model_sha256 = weights_sha256(model)
    torch.manual_seed(0)
    sae = TopKSAE(config)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn_like(sae.W_enc))
        sae.W_dec.copy_(sae.W_enc.T / sae.W_enc.norm(dim=0)[:, None])
    return sae


def gather(d_sae: int, tokens: int, out: Path) -> None:
    model, texts = load_model("valley"), [d.text for d in load_facts("valley").corpus]
    started, cpu = time.perf_counter(), time.process_time()
    config = DashboardConfig(tokens)
    make_dashboards(random_sae(model, d_sae), model, None, out, texts * 5, config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{d_sae} features, {tokens} tokens: {time.perf_counter() - started:.0f} s by the clock, "
        f"{time.process_time() - cpu:.0f} CPU s, {peak:.2f} GiB at most"
    )


@torch.no_grad()
def encode_alone(model: Any, sae: Any, texts: list[str]) -> None:
    """The same texts through the model and the SAE's own encoder; nothing is kept."""
    corpus = read_corpus(model, texts, TOKENS, DashboardConfig().context_size)
    runs = [corpus.tokens[a:b].tolist() for a, b in pairwise(corpus.first)]
    for batch in batches_by_length(runs):
        ids = torch.tensor([runs[i] for i in batch])
        stream = residuals(model, ids, [Site.parse(SITE)])[Site.parse(SITE)].flatten(0, 1)
        for part in stream.split(4096):
            sae.encode(part)


def test_gathering_against_encoding_alone(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model, texts = load_model("valley"), [d.text for d in load_facts("valley").corpus]
    sae, turns = random_sae(model, 16_384), iter(range(100))

    def ours() -> None:
        out = tmp_path / str(next(turns))
        make_dashboards(sae, model, None, out, texts, DashboardConfig(TOKENS))

    speed(
        f"dashboards of 16,384 features, {TOKENS:,} tokens of the world",
        "the model and SAELens' encoder on the same texts, nothing kept",
        "—",
        ours,
        lambda: encode_alone(model, sae, texts),
        "the encoder's product; beyond it: sorting events, passages and neighbours of each feature",
        repeats=5,
        unit=(TOKENS, "token"),
    )


def test_gathering_16384_features_on_a_million_tokens(tmp_path: Path) -> None:
    gather(16_384, 1_000_000, tmp_path / "run")


def test_opening_65536_features(tmp_path: Path) -> None:
    gather(65_536, 20_000, tmp_path / "run")
    started = time.perf_counter()
    dashboards = Dashboards(tmp_path / "run")
    rows(dashboards, View())
    size = len(map_figure(dashboards.overview).to_json())
    first = time.perf_counter() - started
    spent = []
    for index in range(0, len(dashboards), len(dashboards) // 50):
        started = time.perf_counter()
        for figure in feature_figures(dashboards.feature(index), []).values():
            figure.to_json()
        spent.append(time.perf_counter() - started)
    print(
        f"65536 features: first page {first:.2f} s and {size / 1e6:.1f} MB of map; a feature "
        f"{median(spent):.3f} s, at most {max(spent):.3f} s"
    )
