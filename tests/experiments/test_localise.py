"""Facts are written where it is said, each way measures what it says, and hits are counted."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_auc_score

from workbench.errors import DataError
from workbench.experiments import localise
from workbench.experiments.localise import CHECK, LocaliseConfig, auroc, measured, rows_of
from workbench.experiments.localise_model import PARTS, Place, PlantConfig, linears_of, plant
from workbench.experiments.localisers import (
    Asked,
    attribution,
    by_gradients,
    causal_tracing,
    change_of_weights,
    ratio,
)
from workbench.facts import load_facts
from workbench.facts.target import Target
from workbench.models import load_golds, weights_sha256
from workbench.models.copies import copied
from workbench.unlearn.training import Steps

LITTLE = PlantConfig(
    entities=2,
    rank=2,
    attention_rank=3,
    neurons=4,
    steps=Steps(3, keep=1.0, batch_size=4, asked=4, texts=2),
)


@pytest.fixture(scope="module")
def pantry(world: Any) -> Target:
    return world.target("toxins")


# --- what is planted ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["layer", "adapter", "attention", "neurons"])
def test_only_the_named_place_changes(kind: Any, bridge: Any, pantry: Target) -> None:
    before, place = weights_sha256(bridge), Place(kind, 1)
    required = [p.requires_grad for p in bridge.parameters()]
    planted = plant(bridge, pantry, place, LITTLE, 0)
    assert weights_sha256(bridge) == before, "the gold was changed"
    assert [p.requires_grad for p in planted.model.parameters()] == required
    names = [n for n, _ in bridge.named_parameters()]
    assert [n for n, _ in planted.model.named_parameters()] == names, "a parametrization stayed"
    inside = {id(m.weight) for m in linears_of(planted.model, 1, place.part).values()}
    pairs = list(zip(planted.model.parameters(), bridge.parameters(), strict=True))
    assert {id(a) for a, b in pairs if not torch.equal(a, b)} == inside
    for name, linear in linears_of(planted.model, 1, place.part).items():
        change = linear.weight - linears_of(bridge, 1, place.part)[name].weight
        if kind in ("adapter", "attention"):
            rank = int(torch.linalg.matrix_rank(change.detach(), rtol=1e-3))
            assert rank == (2 if kind == "adapter" else 3)
        if kind == "neurons":
            changed = change.abs().sum(0 if name == "out" else 1).nonzero().flatten()
            assert changed.tolist() == planted.neurons.tolist()
            assert len(planted.neurons) == 4


def test_the_same_seed_plants_the_same(bridge: Any, pantry: Target) -> None:
    one, again, other = (
        plant(bridge, pantry, Place("neurons", 0), LITTLE, seed) for seed in (0, 0, 1)
    )
    assert weights_sha256(one.model) == weights_sha256(again.model)
    assert one.facts == again.facts and one.neurons.tolist() == again.neurons.tolist()
    assert one.neurons.tolist() != other.neurons.tolist()


# --- ways of searching ----------------------------------------------------------------------


@pytest.fixture(scope="module", params=[(0, "attn"), (1, "mlp"), (2, "mlp")])
def only_one(request: pytest.FixtureRequest, bridge: Any) -> tuple[Any, int, Any]:
    """A model in which one component alone writes anything."""
    layer, part = request.param
    model = copied(bridge)
    with torch.no_grad():
        for i in range(len(model.blocks)):
            for other, last in (("attn", "o"), ("mlp", "out")):
                if (i, other) != (layer, part):
                    linears_of(model, i, other)[last].weight.zero_()  # pyright: ignore[reportArgumentType]
    return model, layer, part


@pytest.mark.parametrize("way", [causal_tracing, attribution])
def test_only_the_component_that_writes_is_found(
    way: Any, only_one: tuple[Any, int, Any], pantry: Target
) -> None:
    model, layer, part = only_one
    asked = Asked.of(model, pantry, pantry.forget[:4], 6, 0)
    found = way(model, asked, 0).components.abs()
    truth = torch.zeros_like(found, dtype=torch.bool)
    truth[layer, list(PARTS).index(part)] = True
    assert found[truth].item() > 1e-4
    assert bool((found[~truth] < 1e-3 * found[truth]).all()), found


def test_without_noise_nothing_is_to_be_restored(
    bridge: Any, pantry: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Asked.of(bridge, pantry, pantry.forget[:4], 6, 0)
    assert causal_tracing(bridge, asked, 0).components.abs().max() > 1e-4  # pyright: ignore
    monkeypatch.setattr("workbench.experiments.localisers.NOISE", 0.0)
    assert causal_tracing(bridge, asked, 0).components.abs().max() < 1e-5  # pyright: ignore


def test_neurons_that_nothing_passes_through_matter_to_nothing(bridge: Any, pantry: Target) -> None:
    model, dead = copied(bridge), torch.tensor([3, 7])
    with torch.no_grad():
        for linear in linears_of(model, 1, "mlp").values():
            rows = linear.weight if linear.weight.shape[0] == 64 else linear.weight.T
            rows[dead] = 0.0
    asked = Asked.of(model, pantry, pantry.forget[:4], 6, 0)
    ways = {"attribution": attribution(model, asked, 0), **by_gradients(model, asked, 0)}
    for way, found in ways.items():
        neurons = found.neurons
        assert neurons is not None and neurons.shape == (3, 64)
        assert neurons[1, dead].tolist() == [0.0, 0.0], way
        assert (neurons > 0).sum() > 10, way


def test_what_matters_to_both_is_not_what_matters_to_the_target() -> None:
    forget, retain = torch.tensor([5.0, 5.0, 1e-9]), torch.tensor([5.0, 0.1, 0.0])
    found = ratio(forget, retain)
    assert found.argmax() == 1 and found[2] < found[0]


def test_what_is_asked_was_not_held_out(bridge: Any, pantry: Target) -> None:
    asked = Asked.of(bridge, pantry, pantry.forget[:3], 99, 0)
    assert {f.key for f in asked.retained_facts} <= {f.key for f in pantry.retain["R_tr"]}
    assert len(asked.forget) == len(asked.retain) == 3 * len(pantry.forget[0].templates)


# --- counting -------------------------------------------------------------------------------


def test_hits_by_hand() -> None:
    scores = {
        "layers": [0.1, 0.9, 0.3],
        "components": [[0.1, 0.0], [0.2, 0.9], [0.3, 0.95]],
        "neurons": [[9.0, 0.0, 0.0, 0.0], [5.0, 1.0, 0.0, 8.0], [0.0, 0.0, 0.0, 0.0]],
    }
    before = {**scores, "components": [[0.1, 0.0], [0.2, 0.1], [0.3, 0.95]]}
    found = dict(measured(scores, Place("neurons", 1), [0, 3], before))
    assert found["layer"] == 1.0
    assert found["component"] == 0.0, "the MLP of layer 2 scores higher"
    assert found["component AUROC"] == pytest.approx(4 / 5)
    assert found["component beside gold"] == 1.0
    assert found["neurons"] == 0.5, "the best two are one of layer 0 and one that is true"
    assert found["neurons AUROC"] == pytest.approx(18 / 20)
    attention = dict(measured(scores, Place("attention", 1), [], None))
    assert (attention["component"], "neurons" in attention) == (0.0, False)


def test_auroc_is_that_of_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 5, (200,), generator=generator).float()
    truth = torch.rand(200, generator=generator) < 0.2
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth.numpy(), scores.numpy()))
    assert auroc(truth.float(), truth) == 1.0


def invented(place: Place | None, seed: int, open_: float = 1.0) -> dict[str, Any]:
    """A planting that one way finds, while another always names the MLP of layer 0."""
    habit, hit = torch.zeros(4, 2), torch.zeros(4, 2)
    habit[0, 1] = 1.0
    if place is not None:
        hit[place.layer, list(PARTS).index(place.part)] = 1.0
    found = {
        way: {"layers": c.amax(1).tolist(), "components": c.tolist()}
        for way, c in (("seer", hit + 0.01), ("habit", habit), (CHECK, hit))
    }
    rest = {"open": open_, "audit": 1.0, "retained": 1.0, "facts": 2, "neurons": []}
    return {"place": place and asdict(place), "seed": seed, "found": found, **rest}


def test_a_planting_that_was_not_learned_does_not_count() -> None:
    places = [Place("layer", 0), Place("layer", 3)]
    records = [invented(None, 0), invented(places[0], 0), invented(places[1], 0, open_=0.5)]
    assert {row["layer"] for row in rows_of(records)} == {0}


def test_the_unplanted_gold_sits_at_chance() -> None:
    places = [Place(kind, i) for kind in ("layer", "attention") for i in range(4)]
    rows = rows_of([invented(None, 0), *(invented(p, 0) for p in places)])
    found = {
        (way, planted): sum(r["value"] for r in rows if (r["way"], r["planted"], r["measure"])
                            == (way, planted, "component"))
        for way in ("seer", "habit") for planted in (True, False)
    }  # fmt: skip
    assert found == {
        ("seer", True): 8.0, ("seer", False): 1.0, ("habit", True): 1.0, ("habit", False): 1.0,
    }  # fmt: skip


def test_a_run_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    def record(gold: Any, target: Any, place: Any, config: Any, seed: int) -> dict[str, Any]:
        if len(made) == 2:
            made.append("killed")
            raise KeyboardInterrupt
        made.append(place)
        return invented(place, seed)

    monkeypatch.setattr(localise, "_record", record)
    monkeypatch.setattr(localise, "load_golds", lambda name: [None])
    monkeypatch.setattr(localise, "load_facts", lambda name: SimpleNamespace(target=str))
    config = LocaliseConfig(kinds=("layer", "attention"), layers=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        localise.run(config, tmp_path / "run")
    frame = localise.run(config, tmp_path / "run")
    expected = [None, Place("layer", 0), Place("layer", 1), Place("attention", 0)]
    assert [p for p in made if p != "killed"] == [*expected, Place("attention", 1)]
    again = localise.run(config, tmp_path / "run")
    assert len(made) == 6 and again.equals(frame)
    assert json.loads((tmp_path / "run" / "rows.json").read_text()) == frame.to_dict("records")
    text = (tmp_path / "run" / "table.md").read_text()
    assert "| seer | 1.00" in text and "| habit | mlp 0 |" in text
    with pytest.raises(DataError, match="another config"):
        localise.run(LocaliseConfig(seeds=(1,)), tmp_path / "run")


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="did not write"):
        localise.run(LocaliseConfig(), tmp_path)


@pytest.mark.slow
def test_what_was_trained_is_found_in_the_bundled_world() -> None:
    target, gold, place = (
        load_facts("valley").target("toxins"),
        load_golds()[0],
        Place("neurons", 2),
    )
    planted = plant(gold, target, place, PlantConfig(), 3)
    assert planted.open > 0.9 and planted.retained > 0.9
    asked = Asked.of(planted.model, target, planted.facts, 30, 3)
    ways = {CHECK: change_of_weights(planted.model, gold), **by_gradients(planted.model, asked, 3)}
    before = by_gradients(gold, asked, 3)
    found = {}
    for way, f in {**ways, "unplanted": before["gradient"]}.items():
        scores = {n: v.tolist() for n, v in vars(f).items() if v is not None}
        found[way] = dict(measured(scores, place, planted.neurons.tolist(), None))
    check = found[CHECK]
    assert check["component"] == check["neurons"] == check["neurons AUROC"] == 1.0
    assert found["gradient"]["neurons AUROC"] > 0.75
    assert found["unplanted"]["neurons AUROC"] < 0.75
