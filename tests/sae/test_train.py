"""Training recovers what was planted, says how it was done, and gives the same SAE again."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from torch import Tensor

from workbench.activations import Activations, ActivationsCard, harvest
from workbench.activations.shards import Shard
from workbench.artifacts import file_sha256, write_json
from workbench.errors import SAEError
from workbench.hooks import Site
from workbench.sae import TrainConfig, load_sae, train_sae, train_saes
from workbench.sae import train as training
from workbench.sae.config import CLASSES
from workbench.sae.config import held_out as held_out_by
from workbench.sae.fit import Fit
from workbench.sae.metrics import feature_stats, reconstruction
from workbench.sae.train import read_recipe

D_MODEL, TRUE, DOCUMENTS, LENGTH = 16, 24, 50, 40
CONFIG = TrainConfig(
    d_sae=48, k=3, samples=40_000, batch_size=128, lr=3e-3, dead_after=20, held_out=0.1
)


def write_activations(folder: Path, rows: Tensor, document: Tensor) -> Activations:
    """A harvest by hand."""
    folder.mkdir()
    position = torch.cat([torch.arange(1, n + 1) for n in document.bincount().tolist()]).int()
    columns = {"acts": rows, "document": document.int(), "position": position, "token": position}
    path = folder / "shard-00000.safetensors"
    shard = Shard(path, len(rows), rows.shape[1], "float32")
    shard.reserve()
    for name, column in columns.items():
        shard.mapped(name, write=True).copy_(column)
    card = ActivationsCard(
        site="blocks.1.hook_resid_post",
        model_sha256="5eed",
        model_name="planted",
        tokenizer_sha256="70c",
        d_model=rows.shape[1],
        dtype="float32",
        documents=int(document.max()) + 1,
        tokens=len(rows),
        mean_norm=rows.norm(dim=-1).mean().item(),
        special_tokens="dropped",
        context_size=LENGTH,
        processing="planted",
        versions={},
        shards={path.name: {"rows": len(rows), "sha256": file_sha256(path)}},
    )
    write_json(folder / "card.json", asdict(card))
    return Activations.open(folder)


@pytest.fixture(scope="module")
def directions() -> Tensor:
    vectors = torch.randn(TRUE, D_MODEL, generator=torch.Generator().manual_seed(0))
    return vectors / vectors.norm(dim=-1, keepdim=True)


@pytest.fixture(scope="module")
def acts(directions: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Activations:
    """Rows that are sums of two of the directions, around a mean far from zero."""
    generator = torch.Generator().manual_seed(1)
    n = DOCUMENTS * LENGTH
    active = torch.rand(n, TRUE, generator=generator).topk(2).indices
    size = 1 + torch.rand(n, 2, generator=generator)
    rows = (size[..., None] * directions[active]).sum(1) + 3
    rows += 0.01 * torch.randn(rows.shape, generator=generator)
    document = torch.arange(DOCUMENTS).repeat_interleave(LENGTH)
    return write_activations(tmp_path_factory.mktemp("acts") / "acts", rows, document)


@pytest.fixture(scope="module")
def trained(acts: Activations, tmp_path_factory: pytest.TempPathFactory) -> tuple[SAE, Path]:
    out = tmp_path_factory.mktemp("sae") / "sae"
    return train_sae(acts, CONFIG, out), out


@pytest.fixture(scope="module")
def held_out(acts: Activations) -> Tensor:
    """Mask of the rows that the metrics were taken on."""
    return held_out_by(CONFIG)(acts.where()[0])


def test_training_recovers_the_planted_directions(
    trained: tuple[SAE, Path], directions: Tensor
) -> None:
    sae, out = trained
    assert read_recipe(out)["held_out"]["fvu"] < 0.1
    cosine = (sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True)) @ directions.T
    assert cosine.amax(0).median() > 0.95


def test_untrained_sae_is_far_worse(
    acts: Activations, trained: tuple[SAE, Path], tmp_path: Path
) -> None:
    """One step; the mean predictor has 1."""
    train_sae(acts, replace(CONFIG, samples=CONFIG.batch_size), tmp_path / "sae")
    start, end = (read_recipe(p)["held_out"]["fvu"] for p in (tmp_path / "sae", trained[1]))
    assert end < start / 2


def test_saved_sae_opens_in_sae_lens_and_is_the_one_returned(
    acts: Activations, trained: tuple[SAE, Path]
) -> None:
    sae, out = trained
    other, rows = SAE.load_from_disk(str(out)), acts.rows()[:200]
    assert torch.equal(other.encode(rows), sae.encode(rows))
    assert torch.equal(other(rows), sae(rows))
    again = load_sae(out)
    assert torch.equal(again(rows), sae(rows))
    assert not any(p.requires_grad for p in again.parameters())
    assert (sae.encode(rows) > 0).sum(-1).max() <= CONFIG.k


def test_sae_says_what_it_reads(trained: tuple[SAE, Path]) -> None:
    metadata = trained[0].cfg.metadata
    assert metadata.hook_name == "blocks.1.hook_resid_post"
    assert (metadata.model_name, metadata.model_sha256) == ("planted", "5eed")


def test_decoder_has_unit_rows(trained: tuple[SAE, Path]) -> None:
    norms = trained[0].W_dec.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-3, rtol=0)


def test_recipe_holds_config_origin_and_metrics(
    acts: Activations, trained: tuple[SAE, Path], held_out: Tensor
) -> None:
    sae, out = trained
    recipe = read_recipe(out)
    config = {**recipe["config"], "widths": tuple(recipe["config"]["widths"])}
    assert TrainConfig(**config) == CONFIG
    assert ActivationsCard(**recipe["activations"]) == acts.card
    assert recipe["torch"] == torch.__version__
    assert recipe["held_out"] == pytest.approx(reconstruction(sae, acts.rows()[held_out]))
    assert recipe["trained"] == {
        "l0": CONFIG.k,
        "dead": pytest.approx(0, abs=0.3),
        "steps": CONFIG.samples // CONFIG.batch_size,
    }
    density = recipe["density"]
    assert density["never"] + sum(density["features"]) == CONFIG.d_sae
    assert density["tokens"] == int((~held_out).sum())


def test_feature_statistics_are_those_of_the_training_rows(
    acts: Activations, trained: tuple[SAE, Path], held_out: Tensor
) -> None:
    sae = trained[0]
    encoded = sae.encode(acts.rows()[~held_out])
    torch.testing.assert_close(sae.max_activation, encoded.amax(0))
    torch.testing.assert_close(sae.density, (encoded > 0).float().mean(0))


def test_held_out_documents_are_whole_and_take_no_part(
    acts: Activations, trained: tuple[SAE, Path], held_out: Tensor, tmp_path: Path
) -> None:
    """With other rows in their place, the same SAE is trained."""
    document, rows = acts.where()[0], acts.rows()
    kept = set(document[held_out].tolist())
    assert 0 < len(kept) < 3 * CONFIG.held_out * DOCUMENTS
    assert kept.isdisjoint(document[~held_out].tolist())
    rows[held_out] = 100 * torch.randn(int(held_out.sum()), D_MODEL)
    other = train_sae(write_activations(tmp_path / "acts", rows, document), CONFIG)
    assert all(map(torch.equal, other.state_dict().values(), trained[0].state_dict().values()))
    assert torch.equal(other.max_activation, trained[0].max_activation)
    assert read_recipe(tmp_path / "acts-sae")["held_out"]["fvu"] > 0.5


def test_seed_decides_the_weights_and_global_random_numbers_do_not(
    acts: Activations, tmp_path: Path
) -> None:
    short = replace(CONFIG, samples=2000)
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = train_sae(acts, short, tmp_path / "1").W_dec
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(12)
    assert torch.equal(train_sae(acts, short, tmp_path / "2").W_dec, first)
    other = train_sae(acts, replace(short, seed=1), tmp_path / "3").W_dec
    assert not torch.equal(other, first)


def test_out_is_written_whole_or_not_at_all(
    acts: Activations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "reconstruction", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_sae(acts, replace(CONFIG, samples=500), tmp_path / "sae")
    assert [p.name for p in tmp_path.iterdir()] == ["sae.training"]
    monkeypatch.undo()
    monkeypatch.setattr(Fit, "step", interrupt)  # all steps are done: none is made again
    train_sae(acts, replace(CONFIG, samples=500), tmp_path / "sae")
    assert [p.name for p in tmp_path.iterdir()] == ["sae"]


@pytest.mark.parametrize("asked", [{"batch_size": 1801}, {"d_sae": 1801}, {"held_out": 1.0}])
def test_too_few_activations_are_an_error(
    acts: Activations, tmp_path: Path, asked: dict[str, Any]
) -> None:
    with pytest.raises(SAEError, match="training activations; wanted"):
        train_sae(acts, replace(CONFIG, **asked), tmp_path / "sae")
    assert list(tmp_path.iterdir()) == []


# Side by side, interrupted, and by several processes


def same_weights(one: Any, other: Any) -> bool:
    states = (one.state_dict(), other.state_dict())
    return all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_side_by_side_is_the_same_as_one_by_one(acts: Activations, tmp_path: Path) -> None:
    short = replace(CONFIG, samples=4000)
    configs = {"narrow": short, "wide": replace(short, d_sae=96, architecture="batchtopk")}
    together = train_saes(acts, configs, tmp_path / "both", progress=False)
    site = acts.card.site
    assert set(together) == {(site, "narrow"), (site, "wide")}
    for name, config in configs.items():
        alone = train_sae(acts, config, tmp_path / name, progress=False)
        assert same_weights(alone, together[site, name])
        assert (tmp_path / "both" / site / name / "cfg.json").is_file()
    assert together[site, "wide"].cfg.d_sae == 96


def test_side_by_side_wants_one_way_to_read_the_data(acts: Activations, tmp_path: Path) -> None:
    configs = {"a": CONFIG, "b": replace(CONFIG, batch_size=64)}
    with pytest.raises(SAEError, match="2 ways to read the data"):
        train_saes(acts, configs, tmp_path)


def test_two_sites_are_trained_from_one_harvest(bridge: Any, texts: list[str], tmp_path: Path):
    sites = [Site(0), Site(1)]
    stored = harvest(bridge, texts * 4, sites, tmp_path / "acts", progress=False)
    config = TrainConfig(d_sae=40, k=4, samples=2000, batch_size=100, held_out=0.2)
    both = train_saes(stored, {"sae": config}, tmp_path / "both", progress=False)
    for acts in stored:
        alone = train_sae(acts, config, tmp_path / acts.card.site, progress=False)
        assert same_weights(alone, both[acts.card.site, "sae"])
        assert alone.cfg.metadata.hook_name == acts.card.site


def test_stream_trains_without_a_disk(bridge: Any, texts: list[str], tmp_path: Path) -> None:
    stream = harvest(bridge, texts * 4, Site(1), keep=False)
    config = TrainConfig(d_sae=40, k=4, samples=20_000, batch_size=40, held_out=0.2)
    sae = train_sae(stream, config, tmp_path / "sae", progress=False)
    assert sae.cfg.metadata.hook_name == Site(1).name
    assert read_recipe(tmp_path / "sae")["held_out"]["fvu"] < 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["sae"]
    with pytest.raises(SAEError, match="give `out`"):
        train_sae(stream, config)
    once = harvest(bridge, iter(texts), Site(1), keep=False)
    with pytest.raises(SAEError, match="an iterator, which can be read once"):
        train_sae(once, config, tmp_path / "once")


def test_stream_goes_on_with_the_same_texts_alone(
    bridge: Any, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(d_sae=40, k=4, samples=480, batch_size=40, held_out=0.2)
    stream = harvest(bridge, texts * 4, Site(1), keep=False)
    stopped_at(monkeypatch, stream, tmp_path / "sae", config, 9)
    other = harvest(bridge, texts[::-1] * 4, Site(1), keep=False)
    with pytest.raises(SAEError, match="holds an interrupted training with other"):
        train_sae(other, config, tmp_path / "sae", progress=False)
    resumed = train_sae(stream, config, tmp_path / "sae", progress=False)
    assert same_weights(resumed, train_sae(stream, config, tmp_path / "whole", progress=False))


def test_activations_of_one_site_twice_are_an_error(acts: Activations, tmp_path: Path) -> None:
    with pytest.raises(SAEError, match="each of another site"):
        train_saes([acts, acts], {"sae": CONFIG}, tmp_path)
    with pytest.raises(SAEError, match="each of another site"):
        train_saes([], {"sae": CONFIG}, tmp_path)
    with pytest.raises(SAEError, match="no settings were given"):
        train_saes(acts, {}, tmp_path)


def test_sites_of_two_models_are_an_error(acts: Activations, tmp_path: Path) -> None:
    card = replace(acts.card, site="blocks.0.hook_resid_post", model_sha256="other")
    with pytest.raises(SAEError, match="model_sha256 is other"):
        train_saes([acts, replace(acts, card=card)], {"sae": CONFIG}, tmp_path)


RUN = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from workbench.activations import Activations
from workbench.sae import TrainConfig, train_sae
from workbench.sae.fit import Fit
acts, out, kill_at, name, architecture = sys.argv[1:]
config = TrainConfig(architecture=architecture, d_sae=48, k=3, sparsity=0.1, samples=25 * 128,
                     batch_size=128, dead_after=3, lr=3e-3, held_out=0.1, normalize=True)
step, count = Fit.step, 0
def counted(self, rows, number):
    global count
    count += 1
    if number == int(kill_at):
        os.kill(os.getpid(), getattr(signal, name))
    step(self, rows, number)
Fit.step = counted
try:
    train_sae(Activations.open(acts), config, out, checkpoint_every=7, progress=False)
finally:
    print(count)
"""


def run(acts: Activations, out: Path, kill_at: int, name: str, architecture: str) -> Any:
    given = [str(acts.folder), str(out), str(kill_at), name, architecture]
    return subprocess.run(
        [sys.executable, "-c", RUN, *given], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "name", "kill_at", "again"),
    [
        ("topk", "SIGKILL", 20, 11),  # killed before step 20 is done; 14 are saved
        ("topk", "SIGKILL", 3, 25),
        ("topk", "SIGINT", 16, 8),  # step 16 is finished, and saved
        ("matryoshka_batchtopk", "SIGKILL", 16, 11),
        ("jumprelu", "SIGINT", 9, 15),
        ("gated", "SIGKILL", 24, 4),
    ],
)
def test_stopped_and_resumed_is_bit_for_bit_the_uninterrupted_run(
    acts: Activations, tmp_path: Path, architecture: str, name: str, kill_at: int, again: int
) -> None:
    whole = run(acts, tmp_path / "whole", -1, name, architecture)
    assert whole.stdout.split() == ["25"], whole.stderr
    stopped = run(acts, tmp_path / "sae", kill_at, name, architecture)
    assert stopped.returncode != 0
    assert not (tmp_path / "sae").exists()
    saved = len(list((tmp_path / "sae.training").glob("step-*.safetensors")))
    assert saved == min(2, (kill_at >= 7) + (kill_at >= 14) + (name == "SIGINT"))
    resumed = run(acts, tmp_path / "sae", -1, name, architecture)
    assert resumed.stdout.split() == [str(again)], resumed.stderr
    assert not (tmp_path / "sae.training").exists()
    for file in ("sae_weights.safetensors", "feature_stats.safetensors", "recipe.json"):
        assert file_sha256(tmp_path / "sae" / file) == file_sha256(tmp_path / "whole" / file)


def stopped_at(
    monkeypatch: pytest.MonkeyPatch, acts: Any, out: Path, config: TrainConfig, step: int
) -> None:
    """Leaves a training as a crash in that step does, with checkpoints every two steps."""
    with monkeypatch.context() as patch:
        whole = Fit.step

        def crash(self: Fit, rows: Tensor, number: int) -> None:
            if number == step:
                raise RuntimeError("crash")
            whole(self, rows, number)

        patch.setattr(Fit, "step", crash)
        with pytest.raises(RuntimeError, match="crash"):
            train_sae(acts, config, out, checkpoint_every=2, progress=False)


def test_damaged_checkpoint_gives_way_to_the_one_before(
    acts: Activations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(CONFIG, samples=12 * CONFIG.batch_size)
    stopped_at(monkeypatch, acts, tmp_path / "sae", short, 9)
    kept = sorted(p.name for p in (tmp_path / "sae.training").glob("step-*"))
    assert kept == ["step-000000006.safetensors", "step-000000008.safetensors"]
    newest = tmp_path / "sae.training" / kept[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    resumed = train_sae(acts, short, tmp_path / "sae", progress=False)
    assert same_weights(resumed, train_sae(acts, short, tmp_path / "whole", progress=False))


def test_checkpoint_of_other_settings_is_refused_and_kept(
    acts: Activations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(CONFIG, samples=12 * CONFIG.batch_size)
    stopped_at(monkeypatch, acts, tmp_path / "sae", short, 9)
    before = contents(tmp_path)
    with pytest.raises(SAEError, match=r"sae\.training: holds an interrupted training with other"):
        train_sae(acts, replace(short, lr=1e-4), tmp_path / "sae", progress=False)
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[str, str]:
    return {str(p): file_sha256(p) for p in folder.rglob("*") if p.is_file()}


RANKS = """
import sys
import torch
torch.set_num_threads(1)
from workbench.activations import Activations
from workbench.sae import TrainConfig, train_sae
from workbench.sae.fit import join_ranks
device = join_ranks("cpu")
for architecture in sys.argv[3:]:
    config = TrainConfig(architecture=architecture, d_sae=48, k=3, sparsity=0.1, samples=20 * 128,
                         batch_size=128, dead_after=3, held_out=0.1)
    train_sae(Activations.open(sys.argv[1]), config, f"{sys.argv[2]}/{architecture}",
              device=device, progress=False)
"""


@pytest.mark.slow
def test_two_ranks_of_half_a_batch_are_one_rank_of_the_whole(
    acts: Activations, tmp_path: Path
) -> None:
    (tmp_path / "run.py").write_text(RANKS)
    names = list(CLASSES)
    for ranks in (1, 2):
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        given = [str(tmp_path / "run.py"), str(acts.folder), str(tmp_path / str(ranks)), *names]
        done = subprocess.run(
            [sys.executable, *launch, *given], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    for name in names:
        one, two = (load_sae(tmp_path / str(ranks) / name) for ranks in (1, 2))
        for (key, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=f"{name} {key}")
        trained = [read_recipe(tmp_path / str(r) / name)["trained"] for r in (1, 2)]
        assert trained[0] == pytest.approx(trained[1], rel=1e-3)


# Architectures


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("architecture", list(CLASSES))
def test_every_architecture_learns_and_is_saved_as_it_was_trained(
    acts: Activations, held_out: Tensor, tmp_path: Path, architecture: str, normalize: bool
) -> None:
    sparsity = {"jumprelu": 0.02}.get(architecture, 0.05)
    config = replace(CONFIG, architecture=architecture, sparsity=sparsity, normalize=normalize)
    start = replace(config, samples=config.batch_size)
    saes = [
        train_sae(acts, c, tmp_path / name, progress=False)
        for c, name in ((start, "start"), (config, "end"))
    ]
    before, after = (reconstruction(sae, acts.rows()[held_out])["fvu"] for sae in saes)
    assert after < before / 2
    assert after < 0.5
    recipe = read_recipe(tmp_path / "end")
    loaded = recipe["held_out"]["l0"]
    if "topk" in architecture:
        assert recipe["trained"]["l0"] == pytest.approx(config.k, rel=0.01)
    assert (
        SAE.load_from_disk(str(tmp_path / "end")).cfg.architecture() == saes[1].cfg.architecture()
    )
    assert loaded == pytest.approx(recipe["trained"]["l0"], rel=0.15)


@pytest.mark.parametrize("architecture", ["batchtopk", "matryoshka_batchtopk"])
@pytest.mark.parametrize("normalize", [False, True])
def test_threshold_gives_the_l0_of_training_after_loading(
    acts: Activations, held_out: Tensor, tmp_path: Path, architecture: str, normalize: bool
) -> None:
    """After few steps, where a threshold that follows the batches from zero is far off."""
    config = replace(
        CONFIG, architecture=architecture, samples=60 * 128, normalize=normalize, d_sae=128, k=4
    )
    sae = train_sae(acts, config, tmp_path / "sae", progress=False)
    l0 = reconstruction(sae, acts.rows()[~held_out])["l0"]
    assert l0 == pytest.approx(4, rel=0.02)
    assert read_recipe(tmp_path / "sae")["trained"]["l0"] == pytest.approx(4, rel=0.01)
    followed = 0.0  # the rule that is not used here: 60 steps of a hundredth of the way
    for _ in range(60):
        followed = 0.99 * followed + 0.01 * float(sae.threshold[0])
    with torch.no_grad():
        sae.threshold.fill_(followed)
    assert reconstruction(sae, acts.rows()[~held_out])["l0"] > 4 * 1.02


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"k": 0}, "k 0: wanted 1 to 48"),
        ({"samples": 5}, "5 samples in batches of 128 are 0 steps"),
        ({"architecture": "matryoshka_batchtopk", "widths": (20, 10)}, "wanted rising numbers"),
    ],
)
def test_impossible_settings_are_an_error(
    acts: Activations, tmp_path: Path, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(SAEError, match=words):
        train_sae(acts, replace(CONFIG, **asked), tmp_path / "sae")
    assert list(tmp_path.iterdir()) == []


def test_unknown_architecture_is_an_error(acts: Activations, tmp_path: Path) -> None:
    config = replace(CONFIG)
    object.__setattr__(config, "architecture", "relu")  # past the check of types in tests
    with pytest.raises(SAEError, match="architecture 'relu': wanted one of standard"):
        train_sae(acts, config, tmp_path / "sae")


def test_figures_are_logged_where_the_user_asks(acts: Activations, tmp_path: Path) -> None:
    seen = {}
    short = replace(CONFIG, samples=45 * CONFIG.batch_size)
    train_sae(acts, short, tmp_path / "sae", progress=False, log=seen.__setitem__)
    assert list(seen) == [20, 40, 45]
    assert {"loss", "mse_loss", "fvu", "l0", "dead"} <= set(seen[45])
    assert seen[45]["fvu"] < seen[20]["fvu"]
    assert seen[45]["l0"] == short.k


def test_bfloat16_products_train_as_well(
    acts: Activations, trained: tuple[SAE, Path], tmp_path: Path
) -> None:
    train_sae(acts, replace(CONFIG, bfloat16=True), tmp_path / "sae", progress=False)
    fvu = [read_recipe(p)["held_out"]["fvu"] for p in (tmp_path / "sae", trained[1])]
    assert fvu[0] == pytest.approx(fvu[1], abs=0.05)
    assert not torch.equal(load_sae(tmp_path / "sae").W_dec, trained[0].W_dec)


def test_bfloat16_has_ties_and_keeps_k_all_the_same(acts: Activations, tmp_path: Path) -> None:
    config = replace(CONFIG, architecture="batchtopk", bfloat16=True, samples=120 * 128)
    train_sae(acts, config, tmp_path / "sae", progress=False)
    assert read_recipe(tmp_path / "sae")["trained"]["l0"] == pytest.approx(config.k, rel=1e-3)


# Metrics


def test_reconstruction_of_a_perfect_and_of_an_empty_sae(make_sae: Callable) -> None:
    rows = torch.randn(500, 32, generator=torch.Generator().manual_seed(0)) + 2
    sae = make_sae("standard")
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([torch.eye(32), -torch.eye(32)], dim=1))
        sae.W_dec.copy_(sae.W_enc.T)
        sae.b_enc.zero_()
        sae.b_dec.copy_(rows.mean(0))
        perfect = reconstruction(sae, rows)
        sae.b_enc.fill_(-1e3)
        empty = reconstruction(sae, rows)
    assert perfect == {"fvu": pytest.approx(0, abs=1e-9), "l0": 32, "dead": 0.0, "tokens": 500}
    assert empty == {"fvu": pytest.approx(1, abs=1e-5), "l0": 0, "dead": 1.0, "tokens": 500}


def test_metrics_do_not_depend_on_the_batches(
    make_sae: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.sae import metrics

    rows, sae = torch.randn(100, 32, generator=torch.Generator().manual_seed(0)), make_sae()
    whole, stats = reconstruction(sae, rows), feature_stats(sae, rows)
    monkeypatch.setattr(metrics, "ENTRIES", 7 * sae.cfg.d_sae)
    assert reconstruction(sae, rows) == pytest.approx(whole)
    for name, values in feature_stats(sae, rows).items():
        torch.testing.assert_close(values, stats[name])


def test_recipe_is_json(trained: tuple[SAE, Path]) -> None:
    assert json.loads((trained[1] / "recipe.json").read_text()) == read_recipe(trained[1])
