"""The exact effect of many features against the loop of one edited forward pass for each."""

import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from workbench.facts import load_facts
from workbench.hooks import edited
from workbench.interventions import Rescale, but_bos
from workbench.locate import exact_effects
from workbench.locate.concept import Prompt, tokenized
from workbench.models import load_model
from workbench.models.score import ask, batches_by_length
from workbench.sae.load import bundled_saes, load_sae

from .timing import record

PROMPTS, LOOPED, REPEATS = 512, 10, 3


def prompts_of_the_world():
    """Audit questions about all kinds of entities."""
    facts = load_facts("valley")
    stated = [f for f in facts.facts if f.stated and f.audit_templates]
    questions = ask(stated[:: max(1, len(stated) // PROMPTS)], "audit")[:PROMPTS]
    assert len(questions) == PROMPTS
    return [Prompt(q.prompt, q.fact.subject, answer=q.fact.object) for q in questions]


def wide_sae(d_in, d_sae=16_384, k=32):
    """Random unit rows at the first site, as wide as published dictionaries."""
    made = torch.Generator().manual_seed(0)
    metadata = SAEMetadata(hook_name="blocks.0.hook_resid_post", model_name="valley")
    sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, metadata=metadata))
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(d_sae, d_in, generator=made))
        sae.W_dec.div_(sae.W_dec.norm(dim=-1, keepdim=True))
        sae.W_enc.copy_(sae.W_dec.T)
    return sae.requires_grad_(False)


@torch.no_grad()
def one_by_one(model, sae, prompts, features):
    """One full edited forward pass over all prompts for each feature; also the unedited one."""
    given = tokenized(model.tokenizer, prompts)
    losses = torch.zeros(len(prompts), len(features))
    for batch in batches_by_length([t.ids for t in given]):
        ids = torch.tensor([given[i].ids for i in batch])
        answers = torch.tensor([given[i].answer[0] for i in batch])[:, None]
        before = model(ids)[:, -1].log_softmax(-1).gather(-1, answers)[:, 0]
        for column, feature in enumerate(features.tolist()):
            with edited(model, [but_bos(Rescale(sae, torch.tensor([feature])))]):
                after = model(ids)[:, -1].log_softmax(-1).gather(-1, answers)[:, 0]
            losses[batch, column] = before - after
    return losses


def compare(name, sae):
    model, prompts = load_model("valley"), prompts_of_the_world()
    features = torch.randperm(sae.cfg.d_sae, generator=torch.Generator().manual_seed(1))[:1000]
    ratios, seconds, apart = [], [], []
    for turn in range(REPEATS):
        some = features[turn * LOOPED : (turn + 1) * LOOPED]
        started = time.perf_counter()
        looped = one_by_one(model, sae, prompts, some)
        loop = (time.perf_counter() - started) / LOOPED * len(features)
        started = time.perf_counter()
        found = exact_effects(model, sae, prompts, features, progress=False)
        seconds.append(time.perf_counter() - started)
        ratios.append(loop / seconds[-1])
        apart.append((found.each[:, turn * LOOPED : (turn + 1) * LOOPED] - looped).abs().max())
    assert max(apart) < 1e-5, max(apart)
    share = found.runs / (len(prompts) * len(features))
    record(
        f"exact effect of 1,000 features on {PROMPTS} prompts, {name}",
        f"one full edited forward pass per feature ({LOOPED} timed in each turn)",
        "≥ 20",
        ratios,
        f"{statistics.median(seconds):.3g} s",
        f"pairs in which a feature fires: {share:.1%}; values within {max(apart):.1e}",
    )


def test_exact_effect_against_the_loop_bundled_sae():
    compare("bundled SAE of 1,024", load_sae(bundled_saes()[0]))


def test_exact_effect_against_the_loop_wide_sae():
    model = load_model("valley")
    compare("random TopK SAE of 16,384", wide_sae(model.cfg.d_model))


def measured(n):
    """Seconds, and the process' highest memory in MB, for the first n features of the wide SAE."""
    torch.set_num_threads(1)
    model, prompts = load_model("valley"), prompts_of_the_world()
    sae = wide_sae(model.cfg.d_model)
    exact_effects(model, sae, prompts[:8], torch.arange(8), progress=False)
    started = time.perf_counter()
    exact_effects(model, sae, prompts, torch.arange(n), progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return time.perf_counter() - started, peak


def in_a_process(n):
    code = (
        "import json; from tests.bench.bench_effect import measured; "
        f"print(json.dumps(measured({n})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_ten_thousand_features_against_a_thousand():
    ratios, peaks, seconds = [], [], []
    for _ in range(REPEATS):
        few, many = in_a_process(1000), in_a_process(10_000)
        ratios.append(many[0] / few[0])
        peaks.append((few[1], many[1]))
        seconds.append(many[0])
    few, many = (statistics.median(p) for p in zip(*peaks, strict=True))
    record(
        f"time for 10,000 features on {PROMPTS} prompts, random TopK SAE of 16,384",
        "1,000 features",
        "≤ 10",
        ratios,
        f"{statistics.median(seconds):.3g} s",
        f"highest memory of the process {many:,.0f} MB against {few:,.0f} MB",
    )
