"""Attacks change a copy, see what they may see alone, and repeat whatever else runs."""

import copy
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.audit.attacks import (
    FULL,
    QUICK,
    STANDARD,
    AttackConfig,
    Course,
    attacks,
    finetuned,
    savings,
    training,
)
from workbench.audit.attacks.adapters import add_adapters
from workbench.audit.attacks.savings import course, matched
from workbench.audit.attacks.training import batches, statements
from workbench.audit.rotation import Folds, facts_of, rotations
from workbench.audit.statistics import Key, Scores
from workbench.audit.views import Found, View
from workbench.errors import AuditError
from workbench.facts.schema import FactSet
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.models import weights_sha256

SMALL = AttackConfig(
    ("W1", "W2", "W3", "W4"),
    lrs=(1e-3,),
    steps=(0, 1, 4),
    folds=1,
    batch_size=16,
    savings_steps=(0, 2),
)


def view(model: Any, *edits: Any) -> View:
    return View("edited", "deployed" if edits else "weights", model, edits)


def values(found: Found) -> dict[Key, list[float]]:
    return {key: scores.values.tolist() for key, scores in found.items()}


def at(found: Found, subset: str, x: float) -> Scores:
    return next(s for k, s in found.items() if k.subset == subset and k.x == x)


def digest(model: Any) -> str:
    """Hash of every parameter, those of adapters too, which a bridge's own state leaves out."""
    content = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        content.update(name.encode() + parameter.detach().numpy().tobytes())
    return content.hexdigest()


@pytest.fixture
def attacked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hashes of the weights each time they are scored."""
    hashes: list[str] = []
    scored = training.centred_hits

    def recorded(model: Any, *args: Any) -> Scores:
        hashes.append(digest(model))
        return scored(model, *args)

    for module in (training, savings):
        monkeypatch.setattr(module, "centred_hits", recorded)
    return hashes


def test_presets_name_their_jobs(club: Target) -> None:
    turns = len(rotations(club))
    assert turns == 3
    lrs = ("0.0003", "0.001")
    quick = [*(f"W1 fold 0 lr {lr}" for lr in lrs), "W2 fold 0", "W5"]
    assert list(attacks(club, QUICK)) == quick
    relearning = [f"W1 fold {r} lr {lr}" for r in range(turns) for lr in lrs]
    savings_jobs = [f"W2 fold {r}" for r in range(2 * turns)]  # each once more, halves swapped
    rest = savings_jobs, ["W3"], [f"W4 fold {r}" for r in range(turns)]
    still = ["W5", "W6", *(f"W6 fold {r}" for r in range(turns)), "W7"]
    fitted = [f"{name} fold {r}" for name in ("W8", "W9") for r in range(turns)]
    standard = [*relearning, *rest[0], *rest[1], *rest[2], *still, *fitted]
    assert list(attacks(club, STANDARD)) == standard
    full = list(attacks(club, FULL))
    assert [job for job in standard if job not in full] == []
    per_fold = 3 * (1 + len(FULL.other_replays) + len(FULL.ladder))
    assert sum(job.startswith("W1 ") for job in full) == turns * per_fold
    assert [job for job in full if job.startswith("W10")] == [f"W10 fold {r}" for r in range(turns)]


def test_every_fact_is_once_true_and_once_false(club: Target) -> None:
    turn = rotations(club)[0]
    plain, swapped = (matched(club, turn, "order", swapped=s) for s in (False, True))
    keys = {name: {f.key for f in facts} for name, facts in plain.items()}
    assert keys["V"] and not keys["V"] & keys["Z"]
    assert keys["V"] == {f.key for f in swapped["Z"]}
    assert keys["Z"] == {f.key for f in swapped["V"]}
    assert set(plain["V"]) | set(swapped["V"]) <= set(club.forget)


def test_jobs_are_those_that_the_target_has_facts_for(club: Target) -> None:
    alone = replace(club, retain=dict.fromkeys(club.retain, ()))
    names = {job.split()[0] for job in attacks(alone, STANDARD)}
    assert names == {"W1", "W2", "W4", "W5", "W6", "W7", "W8", "W9"}
    single = replace(club, folds={"T": (), "S": (), "V": club.entities})
    assert {job.split()[0] for job in attacks(single, STANDARD)} == {
        *("W2", "W3", "W5", "W6", "W7"),
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": ("W99",)},
        {"other_replays": (1.0,)},
        {"ladder": (1.0,)},
        {"steps": (1, 2)},
        {"savings_steps": (0, 4, 2)},
        {"replay": 1.0},
        {"batch_size": 1},
    ],
)
def test_what_cannot_be_run_is_refused(club: Target, wrong: dict[str, Any]) -> None:
    with pytest.raises(AuditError, match="wanted"):
        attacks(club, AttackConfig(**wrong))


def test_keys_and_questions_are_complete(club: Target, another_gold: Any) -> None:
    found: dict[str, Found] = {}
    for name, job in attacks(club, SMALL).items():
        found[name] = job(view(another_gold))
    turn = rotations(club)[0]
    relearning = found["W1 fold 0 lr 0.001"]
    expected = {Key("W1", s, "centred", "lr 0.001", 0, x) for s in "VS" for x in SMALL.steps}
    expected |= {Key("W1", "R_te", "centred", "lr 0.001", 0, x) for x in (0, 4)}
    assert set(relearning) == expected
    assert set(found["W2 fold 0"]) == {
        Key("W2", s, "centred", "", 0, x) for s in "VZ" for x in SMALL.savings_steps
    }
    assert set(found["W3"]) == {
        *(Key("W3", "F", "centred", "benign", x=x) for x in (0, 16, 64)),
        *(Key("W3", "R_te", "centred", "benign", x=x) for x in (0, 64)),
    }
    assert set(found["W4 fold 0"]) == {
        Key("W4", s, "centred", "lora", 0, x) for s in ("V", "S", "R_te") for x in (0, 4, 16)
    }
    asked = [f for f in facts_of(club, turn["V"]) for _ in f.audit_templates]
    scores = at(relearning, "V", 0)
    assert scores.entities == tuple(f.subject for f in asked)
    assert scores.relations == tuple(f.relation for f in asked)
    assert len(scores.values) == len(asked)


@pytest.mark.parametrize("name", ["W1", "W3", "W4"])
def test_no_label_of_a_scored_fact_reaches_the_attack(
    another_gold: Any,
    club: Target,
    moved: Callable[[Target, str], Target],
    attacked: list[str],
    name: str,
) -> None:
    """Moved before the attack, labels leave its weights alone; after it, they change its scores."""
    config = replace(SMALL, names=(name,))

    def run(target: Target) -> tuple[Found, list[str]]:
        attacked.clear()
        (job,) = attacks(target, config).values()
        return job(view(another_gold)), list(attacked)

    found, before = run(club)
    other, after = run(moved(club, "SV"))
    assert after == before
    scored = [key for key in found if key.subset != "R_te"]
    assert any(found[k].values.tolist() != other[k].values.tolist() for k in scored)
    stayed = [key for key in found if key.subset == "R_te"]
    assert all(found[k].values.tolist() == other[k].values.tolist() for k in stayed)
    taught = run(moved(club, "T"))[1]
    assert (taught == before) == (name == "W3")


def test_ladder_states_the_first_of_t_and_other_replays_are_settings_of_their_own(
    club: Target,
) -> None:
    config = replace(SMALL, names=("W1",), other_replays=(0.0,), ladder=(0.1, 0.5))
    jobs = {name: job.keywords for name, job in attacks(club, config).items()}  # pyright: ignore
    courses = {kw["label"].setting: kw["course"] for kw in jobs.values()}
    whole, half = (set(courses[s].pools[0]) for s in ("lr 0.001", "lr 0.001, 50% of T"))
    tenth = set(courses["lr 0.001, 10% of T"].pools[0])
    assert tenth < half < whole
    assert len(half) == len(whole) / 2
    assert courses["lr 0.001, replay 0"].counts == (16, 0)
    assert courses["lr 0.001, replay 0"].pools[0] == courses["lr 0.001"].pools[0]


def test_savings_see_the_labels_of_v(
    another_gold: Any,
    club: Target,
    moved: Callable[[Target, str], Target],
    attacked: list[str],
) -> None:
    config = replace(SMALL, names=("W2",))
    hashes = []
    for target in (club, moved(club, "V")):
        attacked.clear()
        (job,) = attacks(target, config).values()
        job(view(another_gold))
        hashes.append(list(attacked))
    assert hashes[0][:1] == hashes[1][:1]
    assert set(hashes[0][1:]).isdisjoint(hashes[1][1:])


@pytest.mark.parametrize("name", ["W1", "W4"])
def test_jobs_repeat_whatever_runs_beside_them(
    original: Any, another_gold: Any, club: Target, name: str
) -> None:
    config = replace(SMALL, names=(name,))
    (job,) = attacks(club, config).values()
    alone = values(job(view(another_gold)))
    torch.manual_seed(1)
    state = torch.get_rng_state().clone()
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(job, view(original))
        together = pool.submit(job, view(another_gold))
        assert values(together.result()) == alone
        assert values(beside.result()) != alone
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("adapters", [False, True])
def test_same_order_gives_the_same_weights_and_another_does_not(
    another_gold: Any, club: Target, adapters: bool
) -> None:
    def final(order: str) -> str:
        course = Course((statements(club.fold("T")),), (8,), 1e-3, order, adapters)
        return next(digest(v.model) for _, v in finetuned(view(another_gold), course, (2,)))

    torch.manual_seed(0)
    first = final("a")
    torch.manual_seed(1)
    assert final("a") == first
    assert final("b") != first


@pytest.mark.parametrize("name", ["W1", "W2", "W4"])
def test_callers_model_and_edits_stay_as_they_are(
    original: Any, blank: Any, club: Target, name: str
) -> None:
    before, names = weights_sha256(original), blank.names.clone()
    flags = [p.requires_grad for p in original.parameters()]
    held = replace(blank, names=blank.names.clone().requires_grad_(True))
    for job in attacks(club, replace(SMALL, names=(name,))).values():
        job(view(original, held))
    assert weights_sha256(original) == before
    assert [p.requires_grad for p in original.parameters()] == flags
    assert all(p.grad is None for p in original.parameters())
    assert not original.training
    assert held.names.grad is None
    assert torch.equal(held.names, names)


@dataclass(frozen=True)
class Watching:
    """Changes nothing and notes whether a gradient could flow."""

    site: Site
    graph: list[bool] = field(default_factory=list)

    def __call__(self, resid: Tensor) -> Tensor:
        self.graph.append(resid.requires_grad)
        return resid


@pytest.mark.parametrize(("name", "steps"), [("W1", 4), ("W4", 16)])
def test_edits_stay_attached_while_the_attack_trains(
    original: Any, club: Target, name: str, steps: int
) -> None:
    edit = Watching(Site(1))
    for job in attacks(club, replace(SMALL, names=(name,))).values():
        job(view(original, edit))
    assert edit.graph.count(True) == steps
    assert edit.graph.count(False) >= 3


def test_batches_hold_each_pool_in_its_share_and_go_through_all_of_it(
    original: Any, club: Target
) -> None:
    pools = statements(club.fold("T")), statements(club.retain["R_tr"])
    course = Course(pools, (12, 4), 1e-3, "0")
    stream, seen = batches(original.tokenizer, course), []
    for _ in range(len(pools[0]) // 12):
        texts = original.tokenizer.batch_decode(next(stream), skip_special_tokens=True)
        assert sum(text in pools[0] for text in texts) == 12
        assert sum(text in pools[1] for text in texts) == 4
        seen += [text for text in texts if text in pools[0]]
    assert len(set(seen)) == len(seen)


def test_adapters_alone_learn_and_start_as_nothing(original: Any, club: Target) -> None:
    pools = (statements(club.fold("T")),)
    course = Course(pools, (8,), 1e-2, "0", adapters=True)
    tokens = torch.tensor([original.tokenizer("people meet f001 in")["input_ids"]])
    frozen = {n: p.detach().clone() for n, p in original.named_parameters()}
    logits = []
    for _, attacked in finetuned(view(original), course, (0, 3)):
        logits.append(attacked.model(tokens).detach())
        state = {
            n.replace(".base_layer", ""): p
            for n, p in attacked.model.named_parameters()
            if "lora_" not in n
        }
        assert all(torch.equal(state[n], p) for n, p in frozen.items())
        assert not any(p.requires_grad for p in state.values())
    torch.testing.assert_close(logits[0], original(tokens).detach())
    assert not torch.allclose(logits[1], logits[0])


def test_adapters_are_beside_every_linear_layer_of_the_blocks(original: Any) -> None:
    model = copy.deepcopy(original)
    linear = [m for m in model.blocks.modules() if isinstance(m, torch.nn.Linear)]
    weights = add_adapters(model, "0")
    assert len(weights) == 2 * len(linear) == 2 * 7 * len(model.blocks)
    assert len({id(w) for w in weights}) == len(weights)
    assert all(w.requires_grad for w in weights)
    assert sorted(map(id, weights)) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_model_without_linear_layers_is_refused() -> None:
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            block = torch.nn.Module()
            block.hook_resid_pre = torch.nn.Identity()
            self.blocks = torch.nn.ModuleList([block])

    with pytest.raises(AuditError, match="leave W4 out"):
        add_adapters(Bare(), "0")


def test_kinds_are_dealt_within_entities_without_a_look_at_objects(
    club: Target, moved: Callable[[Target, str], Target]
) -> None:
    turn = rotations(club)[1]
    kinds = matched(club, turn, "0")
    assert (
        [f.subject for f in kinds["V"]]
        == [f.subject for f in kinds["Z"]]
        == list(turn_order(club, turn))
    )
    assert {f.key for f in kinds["V"]}.isdisjoint(f.key for f in kinds["Z"])
    assert all(f in club.forget for f in kinds["V"])
    true = {f.key: f.object for f in club.forget}
    candidates = club.facts.relation
    assert all(f.object != true[f.key] for f in kinds["Z"])
    assert all(f.object in candidates[f.relation].candidates for f in kinds["Z"])
    other = matched(moved(club, "TSV"), turn, "0")
    assert [[f.key for f in some] for some in other.values()] == [
        [f.key for f in some] for some in kinds.values()
    ]


def turn_order(target: Target, turn: Folds) -> list[str]:
    return list(dict.fromkeys(f.subject for f in facts_of(target, turn["V"])))


def test_entities_of_one_fact_fall_into_either_kind_and_templates_are_equally_many(
    club: Target,
) -> None:
    cities = tuple(f for f in club.forget if f.relation == "city")
    kinds = matched(replace(club, forget=cities), rotations(club)[0], "0")
    assert len(kinds["V"]) == len(kinds["Z"]) == 4
    short = tuple(replace(f, templates=f.templates[:3]) for f in kinds["Z"])
    pools = course({**kinds, "Z": short}, SMALL, "0").pools
    assert len(pools[0]) == len(pools[1]) == 3 * 4


def test_facts_without_audit_templates_are_not_scored(another_gold: Any, club: Target) -> None:
    bare = {
        name: tuple(replace(f, audit_templates=()) for f in some)
        for name, some in club.retain.items()
    }
    (job,) = attacks(replace(club, retain=bare), replace(SMALL, names=("W1",))).values()
    assert {k.subset for k in job(view(another_gold))} == {"V", "S"}


def test_longer_objects_and_byte_pairs_are_attacked(tmp_path: Any, world: FactSet) -> None:
    from workbench.models import LMConfig, load_model, train_lm

    folder = train_lm(world, tmp_path / "pairs", LMConfig(16, 1, 1, 64, tokenizer="byte_pair"))
    model, club = load_model(folder), world.target("club")
    for job in attacks(club, replace(SMALL, names=("W1", "W4"))).values():
        assert all(np.isfinite(s.values).all() for s in job(view(model)).values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_attack_runs_where_the_model_is(another_gold: Any, club: Target) -> None:
    model = copy.deepcopy(another_gold).to("cuda")
    for job in attacks(club, replace(SMALL, names=("W1", "W4"))).values():
        found = job(view(model))
        assert all(isinstance(s.values, np.ndarray) for s in found.values())
    assert next(model.parameters()).device.type == "cuda"
