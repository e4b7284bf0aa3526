"""Probes read a planted code on entities they never saw, and else nothing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from workbench.audit.probes import (
    battery,
    linear,
    permuted,
    probes,
    random_init,
    template_split_probe,
)
from workbench.audit.rotation import facts_of, rotations
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.errors import AuditError
from workbench.facts.schema import FactSet
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.models import weights_sha256
from workbench.models.tokenizers import word_tokenizer

D_MODEL, CHANCE_LIMIT = 64, 1 / 12 + 3 * (1 / 12 * 11 / 12 / 48) ** 0.5
"""Three standard errors above chance for 48 entities and 12 candidates."""

CODED = ("layer 0, subject", "layer 2, last")


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


def measured(model: Any, target: Target, *kinds: str, edits: tuple = (), **given: Any) -> Found:
    (job,) = probes(target, kinds or ("P1",), **given).values()
    return job(View("edited", "", model, edits))


def hit(found: Found, endpoint: str, setting: str, subset: str = "F", fold: int = -1) -> float:
    return found[Key(endpoint, subset, "hit", setting, fold)].mean


@pytest.fixture(scope="module")
def large(make_world: Callable[[int, int, float], FactSet]) -> Target:
    """No answer is more common than others, and 16 of 48 entities are scored."""
    return make_world(48, 200, 1 / 12).target("club")


@pytest.fixture(scope="module")
def planted(large: Target) -> Planted:
    return Planted(large.facts)


@pytest.fixture(scope="module")
def found(planted: Planted, large: Target) -> Found:
    kinds = ("P1", "P2", "P3", "P4", "P6")
    return measured(planted, large, *kinds)


@pytest.fixture(scope="module")
def knows_nothing(large: Target) -> Found:
    model = Planted(large.facts, knows=False)
    return measured(model, large, "P1", "P2", "P3", "P4", "P6")


def test_planted_code_is_read_on_entities_that_were_not_fitted(found: Found) -> None:
    for place in CODED:
        assert hit(found, "P1", place) > 0.9
        assert hit(found, "P1", place, "R_te") > 0.9
        assert found[Key("P1", "F", "bits", place)].mean > 2
        assert hit(found, "P3", place) > 0.8
        for fold in range(3):
            assert hit(found, "P2", f"both, {place}", "V", fold) > 0.9
            assert (
                hit(found, "P2", f"forget, {place}", "V", fold) > 0.3
            )  # 24 entities to learn from
    assert hit(found, "P4", "layer 0") > 0.6


def test_nothing_is_read_where_the_code_is_not(found: Found) -> None:
    """Before the first block the last token has not seen the name."""
    for endpoint in ("P1", "P3"):
        assert hit(found, endpoint, "layer 0, last") <= CHANCE_LIMIT
    assert found[Key("P1", "F", "bits", "layer 0, last")].mean < 0.1


def test_model_without_the_code_is_at_chance(knows_nothing: Found) -> None:
    scored = {k: s for k, s in knows_nothing.items() if k.subset == "F" and k.metric == "hit"}
    assert {key.endpoint for key in scored} == {"P1", "P3", "P4", "P6"}
    for key, scores in scored.items():
        assert scores.mean <= CHANCE_LIMIT, key
    for key, scores in knows_nothing.items():
        if key.endpoint == "P2" and key.subset == "V":
            assert scores.mean <= 1 / 12 + 4 * (1 / 12 * 11 / 12 / 16) ** 0.5, key


def test_every_key_holds_its_facts_in_order(found: Found, large: Target) -> None:
    places = [f"layer {n}, {p}" for n in range(3) for p in ("subject", "last")]
    facts = {"F": large.forget, **large.retain, "R_tr_audit": large.retain["R_tr"]}
    wanted = {Key("P1", s, "hit", p) for s in ("F", "R_va", "R_te", "R_tr_audit") for p in places}
    wanted |= {Key("P1", "F", "bits", p) for p in places}
    wanted |= {Key("P3", "F", "hit", p) for p in places}
    wanted |= {Key("P4", "F", "hit", f"layer {n}") for n in range(3)}
    wanted |= {Key("P6", s, "hit", p) for s in ("F", "R_tr") for p in CODED}
    settings = [f"{kind}, {p}" for kind in ("both", "forget") for p in places]
    wanted |= {Key("P2", s, "hit", p, r) for s in "SV" for p in settings for r in range(3)}
    assert set(found) == wanted
    for key, scores in found.items():
        asked = facts.get(key.subset)
        if asked is None:
            asked = facts_of(large, rotations(large)[key.fold][key.subset])
        assert scores.entities == tuple(f.subject for f in asked)
        assert scores.relations == tuple(f.relation for f in asked)
        if key.metric == "hit" and key.endpoint != "P6":
            assert set(np.unique(scores.values)) <= {0.0, 1.0}


def test_each_forget_fact_is_scored_once_by_p2(found: Found, large: Target) -> None:
    place = "both, layer 0, subject"
    scored = [
        fact
        for fold in range(3)
        for scores in [found[Key("P2", "V", "hit", place, fold)]]
        for fact in zip(scores.entities, scores.relations, strict=True)
    ]
    assert sorted(scored) == sorted(f.key for f in large.forget)


def test_control_tasks_sit_at_the_prior_and_are_memorised(found: Found) -> None:
    for place in CODED:
        assert hit(found, "P6", place) <= CHANCE_LIMIT
        assert hit(found, "P6", place, "R_tr") > 2 * CHANCE_LIMIT
        assert hit(found, "P1", place, "R_tr_audit") > hit(found, "P6", place, "R_tr")


@pytest.mark.parametrize("ignorant", [permuted, random_init])
def test_template_split_reads_names_off_a_model_that_knows_nothing(
    planted: Planted, large: Target, ignorant: Callable[[Any], Any]
) -> None:
    model, place = ignorant(planted), "layer 0, subject"
    leak = template_split_probe(View("permuted", "", model), large)
    assert leak[Key("P6", "F", "leak", place)].mean > 0.5
    honest = measured(model, large)
    assert all(s.mean <= CHANCE_LIMIT for k, s in honest.items() if k[:3] == ("P1", "F", "hit"))


def test_edit_hides_the_code_from_its_site_on_and_not_before(
    planted: Planted, large: Target, found: Found
) -> None:
    hidden = measured(planted, large, edits=(Zero(Site(0)),))
    for position in ("subject", "last"):
        key = Key("P1", "F", "hit", f"layer 0, {position}")
        assert hidden[key].values.tolist() == found[key].values.tolist()
        for layer in (1, 2):
            assert hit(hidden, "P1", f"layer {layer}, {position}") <= CHANCE_LIMIT
    assert not planted.blocks[0].get_submodule("hook_resid_post")._forward_hooks


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All that is fitted: weights of linear readers, logits of the others."""
    outputs: list[Tensor] = []

    def recorded(module: Any, name: str) -> None:
        function = getattr(module, name)

        def record(*args: Any, **given: Any) -> Any:
            out = function(*args, **given)
            outputs.append(out.slope if hasattr(out, "slope") else out)
            return out

        monkeypatch.setattr(module, name, record)

    recorded(linear, "fit_ridge")
    recorded(battery, "mlp_logits")
    recorded(battery, "attention_logits")
    return outputs


def outputs_of(said: list[Tensor], run: Callable[[], Any]) -> list[Tensor]:
    said.clear()
    run()
    return said.copy()


def same(before: list[Tensor], after: list[Tensor]) -> list[bool]:
    assert len(before) == len(after) > 0
    return [torch.equal(a, b) for a, b in zip(before, after, strict=True)]


def test_objects_of_forget_facts_never_reach_a_fit(
    planted: Planted, large: Target, moved: Callable[[Target, str], Target], said: list[Tensor]
) -> None:
    original = View("original", "", planted)

    def run(target: Target) -> list[Tensor]:
        kinds = ("P1", "P3", "P4", "P5", "P6")
        return outputs_of(said, lambda: measured(planted, target, *kinds, original=original))

    before, wrong = run(large), moved(large, "TSV")
    assert all(same(before, run(wrong)))
    assert hit(measured(planted, wrong), "P1", "layer 0, subject") < 0.3
    first, *rest = large.retain["R_tr"]
    other = replace(first, object="lund" if first.object != "lund" else "arno")
    assert not any(
        same(before, run(replace(large, retain={**large.retain, "R_tr": (other, *rest)})))
    )


def test_p2_is_given_the_objects_of_t_and_not_of_v(
    planted: Planted,
    large: Target,
    moved: Callable[[Target, str], Target],
    said: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(battery, "rotations", lambda target: (target.folds,))

    def run(target: Target) -> list[Tensor]:
        return outputs_of(said, lambda: measured(planted, target, "P2"))

    before = run(large)
    assert all(same(before, run(moved(large, "V"))))
    assert not all(same(before, run(moved(large, "T"))))


def test_ridge_is_chosen_on_r_va_alone(
    planted: Planted,
    large: Target,
    moved: Callable[[Target, str], Target],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever else the labels are wrong, the penalty that reads the code wins over a huge one."""
    monkeypatch.setattr(linear, "RIDGES", (1e4, 1e-1))
    assert hit(measured(planted, moved(large, "TSV")), "P1", "layer 0, subject", "R_te") > 0.9
    wrong = tuple(
        replace(f, object="lund" if f.relation == "city" else "latte") for f in large.retain["R_te"]
    )
    target = replace(large, retain={**large.retain, "R_te": wrong})
    assert hit(measured(planted, target), "P1", "layer 0, subject") > 0.9


def test_frozen_readers_read_the_original_and_no_other_basis(
    planted: Planted, large: Target, found: Found
) -> None:
    original, place = View("original", "", planted), "layer 0, subject"
    mine = measured(planted, large, "P5", original=original)
    assert {key.endpoint for key in mine} == {"P5"}
    same_key = Key("P1", "F", "hit", place)
    assert mine[same_key._replace(endpoint="P5")].values.tolist() == found[same_key].values.tolist()
    another = Planted(large.facts, seed=1)
    theirs = measured(another, large, "P1", "P5", original=original)
    assert hit(theirs, "P1", place) > 0.9
    assert hit(theirs, "P5", place) <= CHANCE_LIMIT
    assert not any(key.endpoint == "P5" for key in measured(planted, large, "P1", "P5"))


def test_same_numbers_in_any_thread_and_no_global_randomness(
    planted: Planted, large: Target
) -> None:
    (job,) = probes(large, ("P1", "P3", "P4", "P6"), original=None).values()
    state, weights = torch.get_rng_state(), weights_sha256(planted)
    with ThreadPoolExecutor(2) as pool:
        views = [View("original", "", planted), View("original", "", Planted(large.facts))]
        first, second = pool.map(job, views)
    assert all(np.array_equal(first[key].values, second[key].values) for key in first)
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_sha256(planted) == weights


def test_trained_model_is_read_and_golds_are_not(
    original: Any, golds: list[Any], club: Target
) -> None:
    """The small world has 24 entities to learn from, so only the last place is asked for much."""
    place = "layer 2, last"
    knows, never = (
        [measured(model, club, "P1") for model in models] for models in ([original], golds)
    )
    gold = np.mean([hit(found, "P1", place) for found in never])
    assert hit(knows[0], "P1", place, "R_te") > 0.5
    assert hit(knows[0], "P1", place) > gold + 0.2


def test_unknown_kinds_and_targets_without_retained_facts_are_refused(large: Target) -> None:
    with pytest.raises(AuditError, match="P9: wanted some of P1, P2"):
        probes(large, ("P1", "P9"))
    with pytest.raises(AuditError, match="R_tr is empty"):
        probes(replace(large, retain={**large.retain, "R_tr": ()}))


def test_folds_without_facts_leave_out_what_needs_them(planted: Planted, large: Target) -> None:
    folds = {"T": (), "S": (), "V": large.entities}
    few = replace(large, folds=folds, retain={**large.retain, "R_va": ()})
    found = measured(planted, few, "P1", "P2")
    assert hit(found, "P1", "layer 0, subject") > 0.9
    assert not any(key.endpoint == "P2" for key in found)


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


@pytest.mark.parametrize("ignorant", [permuted, random_init])
def test_copy_of_a_bridge_is_another_model(original: Any, ignorant: Callable[[Any], Any]) -> None:
    before = weights_sha256(original)
    tokens = torch.tensor([[2, 5, 9, 7]])
    with torch.no_grad():
        logits = original(tokens)
        other = ignorant(original)
        assert not torch.allclose(other(tokens), logits, atol=1e-2)
        assert torch.equal(original(tokens), logits)
    assert weights_sha256(original) == before
    assert weights_sha256(ignorant(original)) == weights_sha256(other)
    pairs = zip(original.parameters(), other.parameters(), strict=True)
    for old, new in ((a.detach(), b.detach()) for a, b in pairs):
        spread, error = float(old.std(correction=0)), 5 / old.numel() ** 0.5
        assert abs(float(old.mean() - new.mean())) <= error * spread + 1e-6
        assert abs(float(new.std(correction=0)) - spread) <= error * spread + 1e-6
