"""The sparse step has the loss and the gradients of SAELens' own."""

import random
from typing import Any

import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from workbench.hooks import Site
from workbench.sae import TrainConfig
from workbench.sae import step as steps
from workbench.sae.config import CLASSES, new_sae
from workbench.sae.fit import Fit
from workbench.sae.step import Step, dense_step, is_sparse, sparse_step, top_k

KINDS = ["topk", "batchtopk", "matryoshka"]


def training_sae(kind: str, d_in: int, d_sae: int, k: int, **options: Any) -> Any:
    if kind == "topk":
        sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k, **options))
    elif kind == "batchtopk":
        config = BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=k, **options)
        sae = BatchTopKTrainingSAE(config)
    else:
        widths = [d_sae // 5, d_sae // 2, d_sae]
        sae = MatryoshkaBatchTopKTrainingSAE(
            MatryoshkaBatchTopKTrainingSAEConfig(
                d_in=d_in, d_sae=d_sae, k=k, matryoshka_widths=widths, **options
            )
        )
    with torch.no_grad():
        sae.b_enc.normal_(std=0.1)
        sae.b_dec.normal_()
        sae.W_dec.mul_(0.5 + torch.rand(d_sae, 1))  # norms that the selection has to heed
    return sae


def assert_same(found: Step, expected: Step) -> None:
    assert found.losses.keys() == expected.losses.keys()
    for name, loss in expected.losses.items():
        torch.testing.assert_close(found.losses[name], loss, rtol=1e-5, atol=1e-5, msg=name)
    assert found.grads.keys() == expected.grads.keys()
    for name, grad in expected.grads.items():
        assert (found.grads[name] - grad).abs().max() <= 1e-5 * grad.abs().max(), name
    assert torch.equal(found.fired, expected.fired)
    assert int(found.active) == int(expected.active)
    torch.testing.assert_close(found.squared_error, expected.squared_error, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_step_is_that_of_sae_lens(kind: str, rescale: bool, seed: int) -> None:
    drawn = random.Random(seed)
    d_in, d_sae, batch = drawn.randint(4, 40), drawn.randint(30, 3000), drawn.randint(2, 200)
    k = drawn.randint(1, 20)
    torch.manual_seed(seed)
    options = {"apply_b_dec_to_input": bool(seed % 3), "rescale_acts_by_decoder_norm": rescale}
    sae, rows = training_sae(kind, d_in, d_sae, k, **options), 2 * torch.randn(batch, d_in)
    assert is_sparse(sae)
    shares = (0.0, 0.01, 0.4, 1.0)  # none, fewer than the auxiliary loss takes, more, all
    for dead in (torch.rand(d_sae) < share for share in shares):
        assert_same(sparse_step(sae, rows, dead), dense_step(sae, rows, dead, {}))


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_do_not_change_the_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sae, rows, dead = training_sae(kind, 16, 200, 5), torch.randn(50, 16), torch.rand(200) < 0.2
    whole = sparse_step(sae, rows, dead)
    monkeypatch.setattr(steps, "CHUNK_BYTES", {"cpu": 7 * 4 * 200})
    assert_same(sparse_step(sae, rows, dead), whole)


def test_few_positive_activations_are_all_that_is_kept() -> None:
    """A batch with fewer positive pre-activations than are wanted."""
    torch.manual_seed(0)
    sae = training_sae("batchtopk", 8, 30, 20)
    with torch.no_grad():
        sae.b_enc.fill_(-0.2)
    rows, dead = torch.randn(40, 8), torch.zeros(30, dtype=torch.bool)
    found = sparse_step(sae, rows, dead)
    assert 0 < int(found.active) < 20 * 40
    assert_same(found, dense_step(sae, rows, dead, {}))
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
    silent = sparse_step(sae, rows, dead)
    assert int(silent.active) == 0
    assert not silent.grads["W_enc"].any()
    assert silent.grads["b_dec"].any()


@pytest.mark.parametrize(("width", "k"), [(1, 1), (16, 16), (64, 1), (1000, 3), (4096, 60)])
def test_top_k_is_exact(width: int, k: int) -> None:
    torch.manual_seed(0)
    for values in (torch.randn(20, width), torch.randint(0, 5, (20, width)).float()):
        best, places = top_k(values, k)
        assert torch.equal(best.sort(-1).values, values.topk(k).values.sort(-1).values)
        assert torch.equal(values.gather(-1, places), best)
        assert all(len(set(row)) == k for row in places.tolist())


def test_other_architectures_take_the_dense_step() -> None:
    sae = StandardTrainingSAE(StandardTrainingSAEConfig(d_in=8, d_sae=20))
    assert not is_sparse(sae)
    rows, dead = torch.randn(30, 8), torch.zeros(20, dtype=torch.bool)
    coefficients = {"l1": 0.5}
    found = dense_step(sae, rows, dead, coefficients)
    acts: Tensor = sae.encode(rows)
    loss = (sae.decode(acts) - rows).square().sum(-1).mean() + 0.5 * (
        acts * sae.W_dec.norm(dim=-1)
    ).sum(-1).mean()
    torch.testing.assert_close(found.losses["loss"], loss.detach())
    loss.backward()
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(found.grads[name], parameter.grad)


@pytest.mark.peer
@pytest.mark.parametrize("architecture", list(CLASSES))
def test_some_steps_lead_where_those_of_sae_lens_trainer_lead(architecture: str) -> None:
    """The whole update: coefficients, clipping, dead features, Adam, learning rates."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(64, 16, generator=generator) for _ in range(12)]
    config = TrainConfig(
        architecture=architecture,
        d_sae=300,
        k=2,
        sparsity=0.1,
        samples=12 * 64,
        batch_size=64,
        dead_after=2,
    )
    ours, theirs = (untrained(config) for _ in range(2))
    fit = Fit(ours, config, Site(0), 1.0, "cpu")
    settings = SAETrainerConfig(
        total_training_samples=config.samples,
        train_batch_size_samples=64,
        lr=config.lr,
        lr_end=config.lr,
        lr_warm_up_steps=1,
        lr_decay_steps=4,
        device="cpu",
        dead_feature_window=2,
    )
    trainer, dead = SAETrainer(cfg=settings, sae=theirs, data_provider=iter(batches)), False
    for number, batch in enumerate(batches):
        for name in trainer.coefficient_schedulers:
            trainer.coefficient_schedulers[name].current_value = config.coefficients_at(number)[
                name
            ]
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(config.lr_at(number))
        trainer.step(batch)
        fit.step(batch, number)
        assert torch.equal(fit.dead, trainer.dead_neurons)
        dead = dead or bool(fit.dead.any())
    assert dead or "topk" not in architecture
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5, msg=name)


def untrained(config: TrainConfig) -> Any:
    torch.manual_seed(0)
    return new_sae(config, SAEMetadata(), torch.randn(300, 16))
