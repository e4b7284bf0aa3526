"""The transfer probe reads a planted code on entities it never saw, and else nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from workbench.audit.probes import best_place, fit_probe, permuted, transfer_probe
from workbench.audit.statistics import Key, Scores
from workbench.facts.schema import FactSet
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.models import weights_sha256
from workbench.models.tokenizers import word_tokenizer

D_MODEL, CHANCE_LIMIT = 64, 1 / 12 + 3 * (1 / 12 * 11 / 12 / 32) ** 0.5
"""Three standard errors above chance for 32 facts and 12 candidates."""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hook_resid_pre, self.hook_resid_post = nn.Identity(), nn.Identity()

    def forward(self, resid: Tensor) -> Tensor:
        """Every token gets the mean of those before it: names are known at the end."""
        resid = self.hook_resid_pre(resid)
        count = torch.arange(1, resid.shape[1] + 1)[:, None]
        return self.hook_resid_post(resid + resid.cumsum(1) / count)


class Planted(nn.Module):
    """Two blocks over embeddings in which each name carries one code per object of its facts."""

    def __init__(self, facts: FactSet, seed: int = 0, knows: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        asked = [t for f in facts.facts for t in (*f.templates, *f.audit_templates)]
        people = [e.name for e in facts.entities]
        self.tokenizer = word_tokenizer([*asked, *people])
        self.cfg = SimpleNamespace(n_layers=2, d_model=D_MODEL)
        embedding = 0.5 * torch.randn(len(self.tokenizer), D_MODEL, generator=generator)
        for relation in facts.relations:
            codes = torch.randn(len(relation.candidates), D_MODEL, generator=generator)
            for fact in facts.facts:
                if fact.relation == relation.name and knows:
                    token = self.tokenizer.convert_tokens_to_ids(fact.subject)
                    embedding[token] += codes[relation.candidates.index(fact.object)]
        self.embedding = nn.Embedding.from_pretrained(embedding, freeze=False)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        resid = self.embedding(tokens)
        for block in self.blocks:
            resid = block(resid)
        return resid @ self.embedding.weight.T


@dataclass(frozen=True)
class Zero:
    site: Site

    def __call__(self, resid: Tensor) -> Tensor:
        return torch.zeros_like(resid)


@pytest.fixture(scope="module")
def large(make_world: Callable[[int, int, float], FactSet]) -> Target:
    """No answer is more common than others, and 16 of 48 entities are scored."""
    return make_world(48, 200, 1 / 12).target("club")


@pytest.fixture(scope="module")
def planted(large: Target) -> Planted:
    return Planted(large.facts)


@pytest.fixture(scope="module")
def found(planted: Planted, large: Target) -> dict[Key, Scores]:
    return transfer_probe(planted, [], large)


def at(subset: str, position: str, layer: int) -> Key:
    return Key("probe", subset, position, layer)


def test_planted_code_is_read_on_entities_that_were_not_fitted(found: dict[Key, Scores]) -> None:
    assert found[at("V", "subject", 0)].mean > 0.9
    assert found[at("V", "last", 2)].mean > 0.9
    assert found[at("R_te", "subject", 0)].mean > 0.9


def test_nothing_is_read_where_the_code_is_not(found: dict[Key, Scores]) -> None:
    """Before the first block the last token has not seen the name."""
    assert found[at("V", "last", 0)].mean <= CHANCE_LIMIT


def test_every_place_is_scored_on_each_held_out_fold(
    found: dict[Key, Scores], large: Target
) -> None:
    places = {
        at(s, p, layer)
        for s in ("S", "V", "R_te")
        for p in ("subject", "last")
        for layer in range(3)
    }
    assert set(found) == places
    for key, scores in found.items():
        facts = large.retain["R_te"] if key.subset == "R_te" else large.fold(key.subset)
        assert scores.entities == tuple(f.subject for f in facts)
        assert set(np.unique(scores.values)) <= {0.0, 1.0}


def test_shuffled_labels_leave_chance(planted: Planted, large: Target) -> None:
    """The code is there, but it says nothing about these labels."""
    order = torch.randperm(len(large.facts.facts) // 2, generator=torch.Generator().manual_seed(0))
    shuffled: dict[Any, str] = {}
    for relation in large.facts.relation:
        facts = [f for f in large.facts.facts if f.relation == relation]
        shuffled |= {f.key: facts[j].object for f, j in zip(facts, order.tolist(), strict=True)}
    facts = tuple(replace(f, object=shuffled[f.key]) for f in large.facts.facts)
    target = replace(large.facts, facts=facts).target("club")
    for key, scores in transfer_probe(planted, [], target).items():
        if key.subset == "V":
            assert scores.mean <= CHANCE_LIMIT, key


def test_model_without_the_code_is_at_chance(large: Target) -> None:
    scores = transfer_probe(Planted(large.facts, knows=False), [], large)
    assert all(s.mean <= CHANCE_LIMIT for key, s in scores.items() if key.subset == "V")


def test_shuffled_weights_are_at_chance(planted: Planted, large: Target) -> None:
    scores = transfer_probe(permuted(planted), [], large)
    assert all(s.mean <= CHANCE_LIMIT for key, s in scores.items() if key.subset == "V")


def test_edit_hides_the_code_from_its_site_on_and_not_before(
    planted: Planted, large: Target, found: dict[Key, Scores]
) -> None:
    hidden = transfer_probe(planted, [Zero(Site(0))], large)
    for position in ("subject", "last"):
        key = at("V", position, 0)
        assert hidden[key].values.tolist() == found[key].values.tolist()
        assert all(hidden[at("V", position, x)].mean <= CHANCE_LIMIT for x in (1, 2))
    assert not planted.blocks[0].get_submodule("hook_resid_post")._forward_hooks


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weights of every probe that is fitted."""
    module, weights = import_module("workbench.audit.probes"), []

    def recorded(*args: Any) -> Tensor:
        weights.append(fit_probe(*args))
        return weights[-1]

    monkeypatch.setattr(module, "fit_probe", recorded)
    return weights


def test_labels_of_forget_facts_never_reach_the_fit(
    planted: Planted,
    large: Target,
    found: dict[Key, Scores],
    moved: Callable[[Target, str], Target],
    fits: list[Tensor],
) -> None:
    transfer_probe(planted, [], large)
    before = fits.copy()
    fits.clear()
    wrong = transfer_probe(planted, [], moved(large, "TSV"))
    assert len(before) == len(fits) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, fits, strict=True))
    for key, scores in wrong.items():
        if key.subset == "R_te":  # the ridge that was chosen is the same too
            assert scores.values.tolist() == found[key].values.tolist()
    assert wrong[at("V", "subject", 0)].mean < 0.3
    assert wrong[at("S", "subject", 0)].mean < 0.3


def test_ridge_is_chosen_on_r_va_alone(
    planted: Planted,
    large: Target,
    moved: Callable[[Target, str], Target],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever else the labels are wrong, the penalty that reads the code wins over a huge one."""
    monkeypatch.setattr(import_module("workbench.audit.probes"), "RIDGE", (1e3, 1e-1))
    key = at("R_te", "subject", 0)
    assert transfer_probe(planted, [], moved(large, "TSV"))[key].mean > 0.9
    wrong = tuple(
        replace(f, object="lund" if f.relation == "city" else "latte") for f in large.retain["R_te"]
    )
    target = replace(large, retain={**large.retain, "R_te": wrong})
    assert transfer_probe(planted, [], target)[at("V", "subject", 0)].mean > 0.9


def test_labels_that_are_fitted_do_reach_the_fit(
    planted: Planted, large: Target, fits: list[Tensor]
) -> None:
    transfer_probe(planted, [], large)
    before = fits.copy()
    fits.clear()
    first, *rest = large.retain["R_tr"]
    other = replace(first, object="lund" if first.object != "lund" else "arno")
    transfer_probe(planted, [], replace(large, retain={**large.retain, "R_tr": (other, *rest)}))
    assert not any(torch.equal(a, b) for a, b in zip(before, fits, strict=True))


def example(n: int = 90, d: int = 6, k: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    noise = 0.7 * torch.randn(n, k, generator=generator)
    return x, (x @ torch.randn(d, k, generator=generator) + noise).argmax(1)


@pytest.mark.parametrize("ridge", [1e-3, 1e-2, 1e-1, 1.0])
def test_probe_is_scikit_learns_logistic_regression(ridge: float) -> None:
    x, label = example()
    fitted, tested = slice(0, 60), slice(60, None)
    weights = fit_probe(x[fitted], label[fitted], torch.ones(60, 4, dtype=torch.bool), ridge)
    peer = LogisticRegression(C=1 / (ridge * 60), tol=1e-10, max_iter=10_000)
    peer.fit(x[fitted].double().numpy(), label[fitted].numpy())
    probabilities = (x[tested] @ weights[:-1] + weights[-1]).softmax(-1).numpy()
    expected = peer.predict_proba(x[tested].double().numpy())
    np.testing.assert_allclose(probabilities, expected, atol=2e-3)
    assert (probabilities.argmax(1) == expected.argmax(1)).all()


def test_relations_are_fitted_apart() -> None:
    """Each row competes among the objects of its own relation, so two relations are two probes."""
    (x1, y1), (x2, y2) = example(60, seed=1), example(30, seed=2)
    allowed = torch.zeros(90, 8, dtype=torch.bool)
    allowed[:60, :4], allowed[60:, 4:] = True, True
    both = fit_probe(torch.cat([x1, x2]), torch.cat([y1, y2 + 4]), allowed, 0.1)
    for x, y, columns in ((x1, y1, slice(0, 4)), (x2, y2, slice(4, 8))):
        alone = fit_probe(x, y, torch.ones(len(y), 4, dtype=torch.bool), 0.1 * 90 / len(y))
        found, wanted = ((x @ w[:-1] + w[-1]).softmax(-1) for w in (both[:, columns], alone))
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)


def test_best_place_is_chosen_on_s_alone() -> None:
    def hits(rate: float) -> Scores:
        return Scores(
            np.array([1.0] * round(10 * rate) + [0.0] * round(10 - 10 * rate)), ("e",) * 10
        )

    scores = {Key("recall", "S", "train"): hits(1.0)}
    rates = {("subject", 0): (0.2, 1.0), ("last", 1): (0.7, 0.0), ("last", 2): (0.5, 0.9)}
    for place, (on_s, elsewhere) in rates.items():
        scores |= {at(fold, *place): hits(elsewhere) for fold in ("V", "R_te")}
        scores[at("S", *place)] = hits(on_s)
    assert best_place(scores, dict.fromkeys(scores, hits(1.0))) == at("V", "last", 1)


def test_place_at_which_the_original_cannot_be_read_does_not_count() -> None:
    def hits(right: int) -> Scores:
        return Scores(np.array([1.0] * right + [0.0] * (10 - right)), ("e",) * 10)

    edited = {at("S", "last", 0): hits(2), at("S", "last", 1): hits(1), at("S", "last", 2): hits(0)}
    original = dict(zip(edited, (hits(2), hits(5), hits(9)), strict=True))
    assert best_place(edited, original) == at("V", "last", 1)
    assert best_place(edited, dict.fromkeys(edited, hits(9))) == at("V", "last", 0)


def test_permuted_model_has_the_same_numbers_in_another_order(planted: Planted) -> None:
    before = weights_sha256(planted)
    shuffled = permuted(planted, seed=1)
    assert weights_sha256(planted) == before
    assert weights_sha256(shuffled) != before
    for (name, old), (other, new) in zip(
        planted.named_parameters(), shuffled.named_parameters(), strict=True
    ):
        assert name == other
        assert not torch.equal(old, new)
        assert torch.equal(old.flatten().sort().values, new.flatten().sort().values)
    assert weights_sha256(permuted(planted, seed=1)) == weights_sha256(shuffled)
    assert weights_sha256(permuted(planted, seed=2)) != weights_sha256(shuffled)


def test_permuted_bridge_is_another_model(original: Any) -> None:
    before = weights_sha256(original)
    tokens = torch.tensor([[2, 5, 9, 7]])
    with torch.no_grad():
        logits = original(tokens)
        shuffled = permuted(original)(tokens)
        assert torch.equal(original(tokens), logits)
    assert not torch.allclose(shuffled, logits, atol=1e-2)
    assert weights_sha256(original) == before
