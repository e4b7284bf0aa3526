"""The same code on CUDA: skipped where there is no device."""

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata

from tests.bench.planted import sparse_rows, write
from workbench.activations import harvest
from workbench.audit import AuditConfig, audit
from workbench.audit.attacks import AttackConfig, Perturbing, attacks
from workbench.audit.views import View
from workbench.experiments.known_models.narrow import few_facts
from workbench.facts import load_facts
from workbench.hooks import Site, edited
from workbench.interventions import Clamp
from workbench.locate import locate
from workbench.models import load_golds, load_model, recall
from workbench.sae import TrainConfig, train_sae
from workbench.sae.config import CLASSES, new_sae
from workbench.sae.load import bundled_saes, load_sae
from workbench.sae.step import sparse_step
from workbench.sae.train import read_recipe
from workbench.unlearn import METHODS, load_arm, method, save_arm, system_recall

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("method", ["frequency", "attribution"])
def test_features_and_the_edited_model_agree_with_the_cpu(method):
    facts = load_facts("valley")
    target, found = facts.target("toxins"), {}
    for device in ("cpu", "cuda"):
        model, sae = load_model("valley", device=device), load_sae(bundled_saes()[0], device=device)
        located = locate(model, sae, target, 32, method)
        with edited(model, [Clamp(sae, located.features, -1.0)]):
            left = recall(model, model.tokenizer, facts, target.fold("S"), "audit")
        found[device] = set(located.features.tolist()), left
    assert len(found["cpu"][0] & found["cuda"][0]) >= 30
    assert found["cpu"][1] == pytest.approx(found["cuda"][1], abs=0.02)


@pytest.mark.parametrize("architecture", list(CLASSES))
@pytest.mark.parametrize("bfloat16", [False, True])
def test_sae_is_trained_as_on_the_cpu(tmp_path, architecture, bfloat16):
    acts = write(tmp_path / "acts", sparse_rows(20_000, 64, 128, 5))
    config = TrainConfig(
        architecture=architecture, d_sae=256, k=8, sparsity=0.1, samples=400_000, bfloat16=bfloat16
    )
    fvu = {}
    for device in ("cpu", "cuda"):
        train_sae(acts, config, tmp_path / device, device=device, progress=False)
        fvu[device] = read_recipe(tmp_path / device)["held_out"]["fvu"]
    assert fvu["cuda"] == pytest.approx(fvu["cpu"], rel=0.1)
    assert fvu["cuda"] < 0.5


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka_batchtopk"])
def test_sparse_step_is_that_of_the_cpu(kind):
    config = TrainConfig(architecture=kind, d_sae=2048, k=16)
    rows = sparse_rows(2048, 64, 128, 5)
    sae, dead = new_sae(config, SAEMetadata(), rows), torch.rand(2048) < 0.3
    on_cpu = sparse_step(sae, rows, dead)
    on_gpu = sparse_step(sae.cuda(), rows.cuda(), dead.cuda())
    for name, grad in on_cpu.grads.items():
        assert (on_gpu.grads[name].cpu() - grad).abs().max() <= 1e-3 * grad.abs().max(), name


def test_harvest_is_that_of_the_cpu(tmp_path):
    texts = [d.text for d in load_facts("valley").corpus][:500]
    rows = {}
    for device in ("cpu", "cuda"):
        model = load_model("valley", device=device)
        (acts,) = harvest(model, texts, Site(1), tmp_path / device, progress=False)
        rows[device] = acts.rows()
    torch.testing.assert_close(rows["cuda"], rows["cpu"], atol=1e-2, rtol=1e-2)


def test_quick_audit_is_that_of_the_cpu(tmp_path):
    target, found = load_facts("valley").target("toxins"), {}
    for device in ("cpu", "cuda"):
        model, sae = load_model("valley", device=device), load_sae(bundled_saes()[0], device=device)
        edit = Clamp(sae, locate(model, sae, target, 32, "frequency").features, -1.0)
        found[device] = audit(
            model,
            edit,
            target,
            load_golds(device=device),
            AuditConfig("quick", workers=1),
            cache=tmp_path / device,
        )
    cpu, cuda = found["cpu"], found["cuda"]
    assert cuda.card.env["device"].startswith("cuda")
    assert cuda.verdict.primary == cpu.verdict.primary
    for a, b in zip(cuda.endpoints, cpu.endpoints, strict=True):
        assert (a.id, a.valid, a.recovered) == (b.id, b.valid, b.recovered)
        assert a.rho == pytest.approx(b.rho, abs=0.05)


@pytest.mark.parametrize("name", [f"W{i}" for i in range(1, 11)])
def test_attacks_do_what_they_do_on_the_cpu(name):
    target, found = few_facts(load_facts("valley").target("toxins"), 60), {}
    doses = Perturbing(bits=(4,), sparsities=(0.3,), sigmas=(0.05,), draws=1, n_soft=(1,))
    config = AttackConfig((name,), (1e-3,), (0, 4), 1, savings_steps=(0, 4), perturbing=doses)
    for device in ("cpu", "cuda"):
        view = View("original", "", load_model("valley", device=device))
        jobs = attacks(target, config)
        found[device] = {k: s for job in jobs.values() for k, s in job(view).items()}
    assert found["cpu"].keys() == found["cuda"].keys() and found["cpu"]
    for key, scores in found["cpu"].items():
        assert found["cuda"][key].mean == pytest.approx(scores.mean, abs=0.1), key


@pytest.mark.parametrize("name", [name for name in METHODS if name != "retrain"])
def test_methods_forget_and_keep_as_on_the_cpu(tmp_path, name):
    """But for retraining, which is the training of a gold. Sampling differs in the last bits."""
    facts = load_facts("valley")
    target, found = facts.target("toxins"), {}
    for device in ("cpu", "cuda"):
        model = load_model("valley", device=device)
        arm = method(name)(model, target)
        save_arm(arm, model, tmp_path / device)
        arm = load_arm(tmp_path / device, model, device)
        assert {str(p.device).split(":")[0] for p in arm.model.parameters()} == {device}
        asked = (target.fold("S"), target.retain["R_va"])
        found[device] = [system_recall(arm, facts, some) for some in asked]
    assert found["cuda"] == pytest.approx(found["cpu"], abs=0.1)
