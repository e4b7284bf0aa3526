"""Training recovers what was planted, says how it was done, and gives the same SAE again."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import save_file
from torch import Tensor

from workbench.activations import Activations, ActivationsCard
from workbench.artifacts import file_sha256, write_json
from workbench.errors import SAEError
from workbench.sae import TrainConfig, load_sae, train_sae
from workbench.sae import train as training
from workbench.sae.metrics import feature_stats, reconstruction
from workbench.sae.train import read_recipe

D_MODEL, TRUE, DOCUMENTS, LENGTH = 16, 24, 50, 40
CONFIG = TrainConfig(
    d_sae=48, k=3, samples=40_000, batch_size=128, lr=3e-3, dead_after=20, held_out=0.1
)


def write_activations(folder: Path, rows: Tensor, document: Tensor) -> Activations:
    """A harvest by hand."""
    folder.mkdir()
    position = torch.cat([torch.arange(1, n + 1) for n in document.bincount().tolist()])
    tensors = {"acts": rows, "document": document.int(), "position": position.int()}
    save_file(tensors, folder / "shard-00000.safetensors")
    card = ActivationsCard(
        site="blocks.1.hook_resid_post",
        model_sha256="5eed",
        model_name="planted",
        d_model=rows.shape[1],
        dtype="float32",
        documents=int(document.max()) + 1,
        tokens=len(rows),
        mean_norm=rows.norm(dim=-1).mean().item(),
        shards={"shard-00000.safetensors": file_sha256(folder / "shard-00000.safetensors")},
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
    return training._held_out(acts.where()[0], CONFIG)


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
    assert TrainConfig(**recipe["config"]) == CONFIG
    assert ActivationsCard(**recipe["activations"]) == acts.card
    assert recipe["torch"] == torch.__version__
    assert recipe["held_out"] == reconstruction(sae, acts.rows()[held_out])
    assert recipe["held_out"]["tokens"] == round(CONFIG.held_out * DOCUMENTS) * LENGTH


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
    assert len(kept) == round(CONFIG.held_out * DOCUMENTS)
    assert kept.isdisjoint(document[~held_out].tolist())
    rows[held_out] = 100 * torch.randn(int(held_out.sum()), D_MODEL)
    other = train_sae(write_activations(tmp_path / "acts", rows, document), CONFIG)
    assert all(map(torch.equal, other.state_dict().values(), trained[0].state_dict().values()))
    assert torch.equal(other.max_activation, trained[0].max_activation)
    assert read_recipe(tmp_path / "acts" / "sae")["held_out"]["fvu"] > 0.5


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
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asked", [{"batch_size": 1801}, {"d_sae": 1801}, {"held_out": 1.0}])
def test_too_few_activations_are_an_error(
    acts: Activations, tmp_path: Path, asked: dict[str, Any]
) -> None:
    with pytest.raises(SAEError, match="training activations; wanted"):
        train_sae(acts, replace(CONFIG, **asked), tmp_path / "sae")
    assert list(tmp_path.iterdir()) == []


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
    monkeypatch.setattr(metrics, "BATCH", 7)
    assert reconstruction(sae, rows) == pytest.approx(whole)
    for name, values in feature_stats(sae, rows).items():
        torch.testing.assert_close(values, stats[name])


def test_recipe_is_json(trained: tuple[SAE, Path]) -> None:
    assert json.loads((trained[1] / "recipe.json").read_text()) == read_recipe(trained[1])
