"""Directions, vectors and prefixes: what they can unlock comes back, and a gold has nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.audit.attacks import CONTROL, AttackConfig, Perturbing, attacks, prefix
from workbench.audit.attacks.direction import Without, behind_jobs, projections, read, spread
from workbench.audit.attacks.fitting import (
    Added,
    Inserted,
    Prefixed,
    answer_loss,
    answered,
    padded,
    relabelled,
)
from workbench.audit.attacks.prefix import embeddings
from workbench.audit.attacks.prune import prompts_of
from workbench.audit.attacks.soft import embedded
from workbench.audit.rotation import facts_of, rotations
from workbench.audit.views import Found, View
from workbench.facts.target import Target
from workbench.hooks import Site, captured, edited
from workbench.models.score import ask, next_logits


def view(model: Any, *edits: Any) -> View:
    return View("edited", "deployed" if edits else "weights", model, edits)


def run(name: str, target: Target, model: Any, *edits: Any, **doses: Any) -> Found:
    config = AttackConfig((name,), folds=1, perturbing=Perturbing(**doses))
    (job,) = attacks(target, config).values()
    return job(view(model, *edits))


def mean(found: Found, subset: str, setting: str, x: float, attack: str = "") -> float:
    return next(
        s.mean
        for k, s in found.items()
        if (k.subset, k.setting, k.x) == (subset, setting, x) and attack in ("", k.endpoint)
    )


@dataclass(frozen=True)
class Shifted:
    """Adds a vector where a reading of the stream is above a limit, or everywhere."""

    vector: Float[Tensor, " d_model"]
    site: Site
    told: Float[Tensor, " d_model"] | None = None

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        if self.told is None:
            return resid + self.vector
        fires = (resid @ self.told > 0)[..., None]
        return resid + fires * self.vector


@dataclass(frozen=True)
class Locked:
    """Spoils the embeddings of texts whose second token has little of a key."""

    key: Float[Tensor, " d_model"]
    noise: Float[Tensor, " d_model"]
    site: Site = Site(0, "resid_pre")  # noqa: RUF009

    def __call__(
        self, resid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        shut = torch.sigmoid(4 - 8 * (resid[:, 1] @ self.key))
        return resid + shut[:, None, None] * self.noise


@dataclass(frozen=True)
class Scrambled:
    """Adds a vector, in an amount that differs from text to text, unless the stream has a key."""

    key: Float[Tensor, " d_model"]
    noise: Float[Tensor, " d_model"]
    site: Site

    def __call__(self, resid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        shut = torch.sigmoid(4 - 8 * (resid @ self.key))
        amount = torch.sin(100 * (resid.detach() @ self.noise / self.noise.norm()))
        return resid + (shut * amount)[..., None] * self.noise


def drawn(width: int, length: float, seed: int = 0) -> Tensor:
    vector = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return length * vector / vector.norm()


def lengths(model: Any, site: Site, target: Target) -> float:
    prompts = prompts_of(target.forget, "0", 40)
    return float(
        read(view(model), prompts, [site], lambda h: h.norm(dim=-1).flatten())[site].mean()
    )


def test_direction_that_covers_the_answers_is_taken_out(
    original: Any, another_gold: Any, club: Target
) -> None:
    """Where the stream tells of a forget entity, a long vector is laid over it."""
    last = Site(1)
    streams = [
        read(view(original), prompts_of(facts, "0", 200), [last], lambda h: h[:, -1])[last]
        for facts in (club.forget, club.retain["R_tr"])
    ]
    x, sides = torch.cat(streams), torch.cat([s.new_full((len(s), 1), v) for s, v in
                                              zip(streams, (1.0, -1.0), strict=True)])  # fmt: skip
    told = torch.linalg.lstsq(x, sides).solution[:, 0]
    cover = drawn(x.shape[1], 30 * lengths(original, last, club))
    hidden = Shifted(cover, last, told)
    found, gold = (
        run("W8", club, m, *edits, norms=())
        for m, edits in ((original, [hidden]), (another_gold, []))
    )
    before, after = (mean(found, "V", "project out", x) for x in (0, 1))
    assert before < 0.45
    assert after > before + 0.25
    assert mean(gold, "V", "project out", 1) < 0.35


def test_projection_leaves_no_difference_of_means(original: Any, club: Target) -> None:
    prompts, others = (prompts_of(f, "0", 60) for f in (club.forget, club.retain["R_tr"]))
    sites = [Site(0), Site(1)]
    found = projections(view(original), prompts, others)
    assert [p.site for p in found] == sites
    means = [read(view(original), p, sites, lambda h: h[:, -1]) for p in (prompts, others)]
    for project, site in zip(found, sites, strict=True):
        apart = means[0][site].mean(0) - means[1][site].mean(0)
        assert float(apart.norm()) > 1e-3
        assert float(project(apart).norm()) < 1e-4 * float(apart.norm())
    zero = Without(torch.zeros(4), Site(0))
    assert torch.equal(zero(torch.ones(2, 4)), torch.ones(2, 4))


def test_vector_opens_a_lock_that_lies_behind_it(
    original: Any, another_gold: Any, club: Target
) -> None:
    """The same vector in all texts is centred away, so the lock scrambles each in its own way."""
    site, width = Site(1), original.cfg.d_model
    usual = lengths(original, site, club)
    lock = Scrambled(drawn(width, 2 / usual), drawn(width, 8 * usual, 1), site)
    found, gold = (run("W8", club, m, lock, norms=(0.01, 1.0)) for m in (original, another_gold))
    before, weak, strong = (mean(found, "V", "un-steer layer 0", x) for x in (0, 0.01, 1))
    assert before < 0.45
    assert strong > before + 0.25
    assert weak < strong
    assert all(mean(gold, "V", "un-steer layer 0", x) < 0.35 for x in (0.01, 1))


def test_soft_prompt_opens_a_lock_and_a_gold_has_nothing_behind_it(
    original: Any, another_gold: Any, club: Target
) -> None:
    width = original.cfg.d_model
    usual = float(embeddings(original).norm(dim=-1).mean())
    lock = Locked(drawn(width, 2 / usual), drawn(width, 4 * usual, 1))
    found, gold = (run("W9", club, m, lock, n_soft=(1, 2)) for m in (original, another_gold))
    assert {k.setting for k in found if k.endpoint == CONTROL} == {"soft 2"}
    before, after = (mean(found, "V", "soft 2", x, "W9") for x in (0, 100))
    assert before < 0.45
    assert after > before + 0.25
    for key, scores in gold.items():
        assert key.subset == "R_te" or scores.mean < 0.35


def test_shuffled_answers_open_no_lock_that_true_ones_open(original: Any, club: Target) -> None:
    width = original.cfg.d_model
    usual = float(embeddings(original).norm(dim=-1).mean())
    lock = Locked(drawn(width, 2 / usual), drawn(width, 4 * usual, 1))
    found = run("W9", club, original, lock, n_soft=(2,))
    true, control = (mean(found, "V", "soft 2", 100, name) for name in ("W9", CONTROL))
    assert true > control + 0.15


def test_shuffled_answers_are_of_the_same_prompts_and_objects(club: Target) -> None:
    stated = ask(facts_of(club, rotations(club)[0]["T"]), "train")
    shuffled = relabelled(stated, "0")
    assert [q.prompt for q in shuffled] == [q.prompt for q in stated]
    pairs = list(zip(stated, shuffled, strict=True))
    assert sum(a.fact.object != b.fact.object for a, b in pairs) > len(pairs) / 2
    for relation in club.facts.relation:
        objects = [
            sorted(f.object for f in {q.fact.key: q.fact for q in some}.values()
                   if f.relation == relation)
            for some in (stated, shuffled)
        ]  # fmt: skip
        assert objects[0] == objects[1]
    one = {q.fact.key: q.fact.object for q in shuffled}
    assert all(one[q.fact.key] == q.fact.object for q in shuffled)


def test_inserted_embeddings_of_tokens_are_those_tokens(original: Any, club: Target) -> None:
    """A soft prompt that equals a text's embeddings is that text, at its positions."""
    tokenizer = original.tokenizer
    ids = tokenizer("people meet", add_special_tokens=False)["input_ids"]
    vectors = embedded(original, ids)
    torch.testing.assert_close(vectors, embeddings(original)[ids])
    hidden = Prefixed(tokenizer, [ids[0]] * 2)
    row = torch.tensor(hidden(["f001 in"])["input_ids"])
    whole = torch.tensor([tokenizer("people meet f001 in")["input_ids"]])
    with torch.no_grad(), edited(original, [Inserted(vectors[None], hidden.start)]):
        found = original(row)
    torch.testing.assert_close(found, original(whole).detach())
    alone = tokenizer([" arno"], add_special_tokens=False)["input_ids"]
    assert hidden([" arno"], add_special_tokens=False) == {"input_ids": alone}


def test_added_vectors_stand_at_their_positions_and_rows() -> None:
    vectors = torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]])
    out = Added(vectors, Site(0), 2.0)(torch.zeros(4, 3, 1))[..., 0]
    assert out.tolist() == [[2, 4, 4]] * 2 + [[20, 40, 40]] * 2


def test_loss_is_on_the_objects_alone(original: Any, club: Target) -> None:
    questions = ask(club.forget[:3], "train")
    tokens, labels = padded(answered(original.tokenizer, questions))
    assert tokens.shape == labels.shape
    kept = labels != -100
    assert torch.equal(tokens[kept], labels[kept])
    objects = [original.tokenizer.decode(row[row != -100]) for row in labels]
    assert [o.strip() for o in objects] == [q.fact.object for q in questions]
    logits = next_logits(original, tokens).detach()
    losses = answer_loss(logits, labels)
    row = labels[0].tolist()
    at = next(i for i, t in enumerate(row) if t != -100)
    expected = -logits[0, at - 1].log_softmax(-1)[row[at]]
    torch.testing.assert_close(losses[0], expected)


def test_layers_are_spread_alike_and_a_vector_is_added_behind_a_late_hook(
    original: Any, club: Target
) -> None:
    deep = type("Deep", (), {"blocks": [original.blocks[0]] * 8})()
    assert (spread(deep, 1), spread(deep, 2)) == ((1,), (0, 4))
    assert spread(deep, 0) == tuple(range(7))
    assert spread(original, 1) == (0,)
    config = AttackConfig(("W8",), folds=1)
    hook = Added(torch.zeros(1, 1, 1), Site(3))
    assert list(behind_jobs(club, config, (hook,), deep)) == ["W8 behind layer 3 fold 0"]
    late = replace(hook, site=Site(7))
    assert list(behind_jobs(club, config, (hook, late), deep)) == ["W8 behind layer 6 fold 0"]
    assert behind_jobs(club, config, (), deep) == {}
    assert behind_jobs(club, config, (replace(hook, site=Site(1)),), deep) == {}
    assert behind_jobs(club, replace(config, names=("W1",)), (hook,), deep) == {}


def test_prefix_of_tokens_opens_a_lock(
    original: Any, another_gold: Any, club: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single token, since this model takes no longer prefix without losing what it knows."""
    monkeypatch.setattr(prefix, "LENGTH", 1)
    table, usual = embeddings(original), original.tokenizer("cup", add_special_tokens=False)
    key = table[usual["input_ids"][0]]
    lock = Locked(key / key.norm() ** 2, drawn(len(key), 4 * float(table.norm(dim=-1).mean())))
    turn = rotations(club)[0]
    stated = ask(facts_of(club, turn["T"]), "train")
    ids = prefix.found_prefix(view(original, lock), stated, "0", 12)
    assert ids == prefix.found_prefix(view(original, lock), stated, "0", 12)
    assert not set(ids) & set(original.tokenizer.all_special_ids)
    found, gold = (
        prefix.prefix(view(m, lock), club, turn, "0", 0, 12) for m in (original, another_gold)
    )
    before, after = (mean(found, "V", "prefix", x) for x in (0, 12))
    assert after > before + 0.2
    assert mean(gold, "V", "prefix", 12) < 0.35


def test_nothing_is_drawn_from_the_global_state_and_no_hook_stays(
    original: Any, club: Target
) -> None:
    state = torch.get_rng_state().clone()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in original.modules())
    grads = [p.requires_grad for p in original.parameters()]
    first = run("W8", club, original)
    torch.manual_seed(3)
    again = run("W8", club, original)
    assert {k: s.values.tolist() for k, s in first.items()} == {
        k: s.values.tolist() for k, s in again.items()
    }
    torch.set_rng_state(state)
    assert [p.requires_grad for p in original.parameters()] == grads
    assert all(p.grad is None for p in original.parameters())
    with captured(original, [Site(0)]):
        original(torch.tensor([[1, 2]]))
    assert hooks == sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in original.modules()
    )


SMALL = AttackConfig(
    folds=1,
    perturbing=Perturbing(
        bits=(4,), sparsities=(0.3,), sigmas=(0.05,), draws=1, norms=(1.0,), n_soft=(1,)
    ),
)
NAMES = ["W5", "W6", "W7", "W8", "W9"]


@pytest.mark.parametrize("name", NAMES)
def test_no_label_of_a_scored_fact_reaches_the_attack(
    another_gold: Any,
    club: Target,
    moved: Callable[[Target, str], Target],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Moved labels of S and V leave what the model says bit for bit; those of T need not."""
    said: list[bytes] = []
    from workbench.audit.attacks import fitting
    from workbench.audit.questions import scorer

    heard = scorer.continued

    def recorded(*args: Any) -> Any:
        found = heard(*args)
        said.append(found.totals.numpy().tobytes())
        return found

    for module in (fitting, scorer):
        monkeypatch.setattr(module, "continued", recorded)

    def ran(target: Target) -> tuple[list[list[float]], list[bytes]]:
        said.clear()
        found: Found = {}
        for job in attacks(target, replace(SMALL, names=(name,))).values():
            found |= job(view(another_gold))
        return [s.values.tolist() for s in found.values()], list(said)

    scores, before = ran(club)
    other, after = ran(moved(club, "SV"))
    assert after == before
    assert other != scores
    assert (ran(moved(club, "T"))[1] == before) == (name in ("W5", "W6", "W7"))


@pytest.mark.parametrize("name", NAMES)
def test_callers_model_stays_and_utility_is_scored_at_each_dose(
    original: Any, blank: Any, club: Target, name: str
) -> None:
    weights = {n: p.detach().clone() for n, p in original.named_parameters()}
    held = replace(blank, names=blank.names.clone().requires_grad_(True))
    found: Found = {}
    for job in attacks(club, replace(SMALL, names=(name,))).values():
        found |= job(view(original, held))
    assert all(torch.equal(p, weights[n]) for n, p in original.named_parameters())
    assert all(p.grad is None and p.requires_grad for p in original.parameters())
    assert held.names.grad is None
    assert torch.equal(held.names, blank.names)
    for key in found:
        at = {k.x for k in found if k[:1] + k[2:5] == key[:1] + key[2:5] and k.subset == "R_te"}
        assert {0.0, key.x} <= at
    subsets = {k.subset for k in found}
    assert subsets in ({"F", "R_te"}, {"V", "S", "R_te"}, {"F", "V", "S", "R_te"})
    assert all(s.values.min() >= 0 for s in found.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_attacks_run_where_the_model_is(another_gold: Any, club: Target, name: str) -> None:
    import copy

    model = copy.deepcopy(another_gold).to("cuda")
    for job in attacks(club, replace(SMALL, names=(name,))).values():
        assert job(view(model))
    assert next(model.parameters()).device.type == "cuda"
