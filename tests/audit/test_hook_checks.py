"""Hook checks tell an honest hook from one that leaks, misses prompts or depends on the call."""

import copy
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.audit.hook_checks import PARTS, hook_checks, weight_delta
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.models import weights_sha256
from workbench.models.score import answer, ask

LAST = Site(1)
CHANCE_LIMIT = 1 / 12 + 4 * (1 / 12 * 11 / 12 / 24) ** 0.5


@dataclass(frozen=True)
class Act:
    """Any function of the stream as an edit, with an SAE if one is given."""

    site: Site
    do: Any
    sae: Any = None

    def __call__(self, resid: Tensor) -> Tensor:
        return self.do(resid)


def sae(decode: Any) -> Any:
    """An autoencoder whose code is the stream itself."""
    return SimpleNamespace(W_dec=torch.zeros(1), encode=lambda x: x, decode=decode)


WHOLE, NOTHING = sae(lambda x: x), sae(torch.zeros_like)


def check(
    name: str, model: Any, target: Target, *edits: Any, controls: tuple[Any, ...] = ()
) -> Found:
    jobs = hook_checks(target, controls=controls)
    (job,) = (job for title, job in jobs.items() if title.startswith(name))
    return job(View("edited", "deployed", model, edits))


def test_view_without_edits_finds_nothing(original: Any, club: Target) -> None:
    jobs = hook_checks(club, controls=[[Act(LAST, torch.zeros_like)]])
    assert [title.split()[0] for title in jobs] == ["H1", "H2", "H4", "H7"]
    assert all(job(View("original", "", original)) == {} for job in jobs.values())


def test_parts_are_not_read_without_other_entities_to_learn_from(
    original: Any, club: Target
) -> None:
    alone = replace(club, retain=dict.fromkeys(club.retain, ()))
    assert check("H2", original, alone, Act(LAST, lambda x: x, WHOLE)) == {}
    assert check("H2", original, club, Act(LAST, lambda x: x, WHOLE)) != {}


def test_stream_before_an_honest_hook_is_the_same(original: Any, club: Target) -> None:
    found = check("H1", original, club, Act(LAST, torch.zeros_like))
    assert set(found) == {Key("H1", "F", "equal", f"layer {layer}") for layer in (0, 1)}
    for scores in found.values():
        assert scores.mean == 1 and len(scores.values) == len(ask(club.forget, "audit"))
    assert check("H1", original, club, Act(Site(0, "resid_pre"), torch.zeros_like)) == {}


def test_hook_that_reaches_upstream_is_found(original: Any, club: Target) -> None:
    model = copy.deepcopy(original)
    weights = next(p for p in model.parameters() if p.shape[0] == model.cfg.d_vocab)

    def cheat(resid: Tensor) -> Tensor:
        with torch.no_grad():
            weights.mul_(1.01)
        return resid

    found = check("H1", model, club, Act(LAST, cheat))
    assert found[Key("H1", "F", "equal", "layer 0")].mean < 1


def split(model: Any, target: Target, *edits: Any) -> dict[str, float]:
    found = check("H2", model, target, *edits)
    assert all(len(s.values) == len(target.forget) for s in found.values())
    return {key.setting: scores.mean for key, scores in found.items()}


def test_concept_is_found_in_the_part_that_carries_it(original: Any, club: Target) -> None:
    inside = split(original, club, Act(LAST, torch.zeros_like, WHOLE))
    assert set(inside) == set(PARTS)
    assert inside["x"] == inside["xhat"] > CHANCE_LIMIT
    assert max(inside["err"], inside["post"], inside["xhat edited"]) <= CHANCE_LIMIT
    outside = split(original, club, Act(LAST, lambda x: x, NOTHING))
    assert outside["x"] == outside["err"] == outside["post"] == inside["x"]
    assert outside["xhat"] <= CHANCE_LIMIT


def test_sae_is_found_inside_other_edits(original: Any, club: Target) -> None:
    inner = Act(LAST, torch.zeros_like, WHOLE)

    @dataclass(frozen=True)
    class Holder:
        site: Site
        edit: Any = None
        edits: tuple[Any, ...] = ()
        evidence: Any = None

        def __call__(self, resid: Tensor) -> Tensor:
            return torch.zeros_like(resid)

    wanted = split(original, club, inner)
    plain = Act(LAST, lambda x: x)
    assert split(original, club, Holder(LAST, inner)) == wanted
    assert split(original, club, Holder(LAST, edits=(plain, Holder(LAST, inner)))) == wanted
    assert split(original, club, Holder(LAST, plain)) == {}


def test_later_edit_is_split_as_earlier_ones_left_the_stream(original: Any, club: Target) -> None:
    """The list's order does not matter between sites, and does within one."""
    gone, read = Act(Site(0, "resid_pre"), torch.zeros_like), Act(LAST, lambda x: x, WHOLE)
    for edits in ((gone, read), (read, gone)):
        assert split(original, club, *edits)["x"] <= CHANCE_LIMIT
    same_site = Act(LAST, torch.zeros_like)
    assert split(original, club, read, same_site)["x"] > CHANCE_LIMIT
    assert split(original, club, same_site, read)["x"] <= CHANCE_LIMIT
    both = split(original, club, read, Act(LAST, torch.zeros_like, WHOLE))
    assert set(both) == {*PARTS, *(f"{part}, edit 2" for part in PARTS)}


@dataclass(frozen=True)
class Hide:
    """Blanks the names of some people."""

    names: Tensor
    site: Site = field(default=Site(0, "resid_pre"))

    def __call__(self, resid: Tensor) -> Tensor:
        alike = torch.nn.functional.cosine_similarity(resid[..., None, :], self.names, dim=-1)
        return resid * ~(alike > 0.9999).any(-1, keepdim=True)


def test_prompts_at_which_the_edit_fired_are_told(original: Any, club: Target) -> None:
    some = club.entities[::2]
    ids = original.tokenizer(list(some), add_special_tokens=False)["input_ids"]
    hide = Hide(original.embed.weight.detach()[[i[0] for i in ids]].clone())
    found = check("H4", original, club, hide)
    plain = check("H4", original, club, Act(LAST, lambda x: x))
    for family, templates in (("B1", "train"), ("B2", "audit")):
        fired, hits = (found[Key("H4", "F", metric, family)] for metric in ("fired", "hit"))
        asked = ask(club.forget, templates)
        assert fired.entities == hits.entities == tuple(q.fact.subject for q in asked)
        assert fired.values.tolist() == [float(q.fact.subject in some) for q in asked]
        silent = fired.values == 0
        before = answer(original, original.tokenizer, club.facts, asked).hits.numpy()
        assert hits.values[silent].tolist() == before[silent].tolist()
        assert hits.values[~silent].mean() < before[~silent].mean() - 0.2
        assert plain[Key("H4", "F", "fired", family)].mean == 0
        assert plain[Key("H4", "F", "hit", family)].values.tolist() == before.tolist()


def test_firing_is_told_of_prompts_whatever_the_length_of_their_objects(
    original: Any, club: Target
) -> None:
    """The scorer's passes hold rows for objects of two tokens too; firing is about prompts."""
    twice = tuple(
        replace(r, candidates=tuple(f"{c} {c}" for c in r.candidates)) for r in club.facts.relations
    )
    forget = tuple(replace(f, object=f"{f.object} {f.object}") for f in club.forget)
    longer = replace(club, facts=replace(club.facts, relations=twice), forget=forget)
    some = club.entities[::2]
    ids = original.tokenizer(list(some), add_special_tokens=False)["input_ids"]
    hide = Hide(original.embed.weight.detach()[[i[0] for i in ids]].clone())
    one, two = (check("H4", original, t, hide) for t in (club, longer))
    for family in ("B1", "B2"):
        key = Key("H4", "F", "fired", family)
        assert one[key].values.tolist() == two[key].values.tolist()
        assert 0 < one[key].mean < 1


def same_answer(model: Any, target: Target, do: Any) -> dict[str, float]:
    found = check("H4", model, target, Act(LAST, do))
    return {k.setting: s.mean for k, s in found.items() if k.metric == "same_answer"}


def test_ways_of_calling_agree_unless_the_edit_depends_on_them(original: Any, club: Target) -> None:
    ways = ["batch of 1", "right padding", "cache"]
    assert same_answer(original, club, lambda x: 0.9 * x) == dict.fromkeys(ways, 1.0)

    def in_company(resid: Tensor) -> Tensor:
        return -resid if len(resid) > 1 else resid

    def in_long_rows(resid: Tensor) -> Tensor:
        return -resid if resid.shape[1] > 1 else resid

    assert same_answer(original, club, in_company)["batch of 1"] < 0.5
    assert same_answer(original, club, in_long_rows)["cache"] < 0.5
    assert same_answer(original, club, lambda x: x - x[:, -1:])["right padding"] < 1


def test_random_edits_are_scored_as_given(original: Any, club: Target) -> None:
    controls = ([Act(LAST, lambda x: x)], [Act(LAST, torch.zeros_like)])
    found = check("H7", original, club, Act(LAST, lambda x: x), controls=controls)
    harmless, harmful = (found[Key("H7", "F", "raw", f"random {i}")] for i in (0, 1))
    plain = answer(original, original.tokenizer, club.facts, ask(club.forget, "audit")).hits
    assert harmless.values.tolist() == plain.float().tolist()
    assert harmful.mean < 0.3 < harmless.mean


def test_checks_change_neither_model_nor_randomness(original: Any, club: Target) -> None:
    before, state = weights_sha256(original), torch.get_rng_state()
    edit = Act(LAST, torch.zeros_like, WHOLE)
    first, second = (
        {
            key: scores
            for name in ("H1", "H2", "H4")
            for key, scores in check(name, original, club, edit).items()
        }
        for _ in range(2)
    )
    assert all(np.array_equal(first[key].values, second[key].values) for key in first)
    assert weights_sha256(original) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_same_weights_have_no_delta(original: Any) -> None:
    delta = weight_delta(original, copy.deepcopy(original))
    assert delta.identical and delta.changed_tensors == 0
    assert delta.rel_fro == 0 and delta.max_rank == 0


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_change_is_measured(original: Any, rank: int) -> None:
    changed, generator = copy.deepcopy(original), torch.Generator().manual_seed(0)
    name, weight = next((n, p) for n, p in changed.named_parameters() if p.ndim == 2)
    with torch.no_grad():
        left = torch.randn(weight.shape[0], rank, generator=generator)
        step = left @ torch.randn(rank, weight.shape[1], generator=generator)
        weight.add_(0.1 * step)
    delta = weight_delta(original, changed, tolerance=1e-5)
    assert not delta.identical
    assert delta.changed == (name,) and delta.max_rank == rank
    total = sum(float(p.detach().square().sum()) for p in original.parameters())
    total += sum(float(b.double().square().sum()) for b in original.buffers())
    assert delta.rel_fro == pytest.approx(float(0.1 * step.norm()) / total**0.5, rel=1e-3)
