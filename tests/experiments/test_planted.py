"""Planted models are what they say, and so are the numbers that scores are given on them."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score

from workbench.errors import DataError
from workbench.experiments.planted import (
    LEAST,
    METHODS,
    PlantedConfig,
    ablation_costs,
    answers_of,
    average_precision,
    difference,
    joint_rows,
    precision_recall,
    require_truth,
    run,
    score_rows,
    table,
    verdict,
)
from workbench.experiments.planted_model import CAUSAL, INERT, PlantedModel, Setting, plant
from workbench.hooks import Site, residuals
from workbench.locate import measure
from workbench.locate.joint import Goal
from workbench.models.load import weights_sha256

SETTING = Setting("test", noise=0.3, decoys=6, chance=4, shared=1, redundant=1)
SMALL = PlantedConfig((Setting("small", decoys=2),), ("frequency",), seeds=2, random_rows=8)


@pytest.fixture(scope="module")
def planted() -> PlantedModel:
    return plant(SETTING, 0, random_rows=24)


@pytest.fixture(scope="module")
def costs(planted: PlantedModel) -> tuple[list[float], list[float]]:
    """What ablating each feature costs the concept's answers, and retained ones."""
    each = range(len(planted.kinds))
    forget, retain = (ablation_costs(planted, side, each).tolist() for side in planted.passages)
    return forget, retain


def of_kind(planted: PlantedModel, *kinds: str) -> list[int]:
    return [i for i, kind in enumerate(planted.kinds) if kind in kinds]


# The construction


def test_every_kind_is_there_as_often_as_the_setting_says(planted: PlantedModel) -> None:
    assert Counter(planted.kinds) == {
        "broad": 1, "strong": 3, "weak": 3, "redundant": 2, "shared": 1,
        "retained": 9, "decoy": 6, "chance": 4, "common": 4, "random": 24,
    }  # fmt: skip
    assert planted.truth.sum() == 10
    assert planted.sae.cfg.d_sae == len(planted.kinds)


def test_the_model_gives_the_planted_answers(planted: PlantedModel) -> None:
    for prompts in planted.passages:
        each = [
            answers_of(planted.model, tuple(replace(p, answer=f"object{i}") for p in prompts))
            for i in range(12)
        ]
        best = torch.stack(each).argmax(0)
        assert [f"object{i}" for i in best] == [p.answer for p in prompts]
        assert answers_of(planted.model, prompts).exp().mean() > 0.7


def test_answers_are_those_of_one_forward_pass_per_prompt(planted: PlantedModel) -> None:
    prompts = planted.passages[0][::9]
    tokenizer, found = planted.model.tokenizer, []
    for p in prompts:
        row = tokenizer(p.text)["input_ids"]
        logits = planted.model(torch.tensor([row]))[0, -1]
        found.append(logits.log_softmax(-1)[tokenizer.convert_tokens_to_ids(p.answer)].item())
    assert answers_of(planted.model, prompts).tolist() == pytest.approx(found, abs=1e-5)


def test_causal_features_move_the_answer_and_no_other_does(
    planted: PlantedModel, costs: tuple[list[float], list[float]]
) -> None:
    forget, _ = costs
    assert min(forget[i] for i in of_kind(planted, *CAUSAL)) > LEAST
    others = [forget[i] for i in of_kind(planted, *INERT, "retained")]
    assert max(others) < LEAST
    assert min(others) > -0.02  # the last norm lets the rest stand out a little
    strong = min(forget[i] for i in of_kind(planted, "broad", "strong"))
    assert strong > 2 * max(forget[i] for i in of_kind(planted, "weak"))


def test_retained_features_harm_retained_answers_only(
    planted: PlantedModel, costs: tuple[list[float], list[float]]
) -> None:
    forget, retain = costs
    assert min(retain[i] for i in of_kind(planted, "retained")) > 0.1
    assert max(forget[i] for i in of_kind(planted, "retained")) < LEAST
    assert max(retain[i] for i in of_kind(planted, *INERT)) < LEAST
    assert max(retain[i] for i in of_kind(planted, "broad", "strong", "weak")) < LEAST


def test_shared_features_harm_both(
    planted: PlantedModel, costs: tuple[list[float], list[float]]
) -> None:
    (shared,) = of_kind(planted, "shared")
    assert min(side[shared] for side in costs) > 0.02


def test_of_a_redundant_pair_each_is_enough(planted: PlantedModel) -> None:
    a, b = of_kind(planted, "redundant")
    assert planted.twins == {a: b, b: a}
    alone = replace(planted, twins={})
    assert ablation_costs(alone, planted.passages[0], [a, b]).max() < LEAST
    assert ablation_costs(planted, planted.passages[0], [a, b]).min() > 0.5


def test_nothing_reads_the_rows_of_inert_features(planted: PlantedModel) -> None:
    named = planted.model.original_model.named_parameters()
    readers = [
        w
        for name, w in named
        if ".v_proj." in name or name.endswith("lm_head._original_component.weight")
    ]
    assert len(readers) == 3
    constant = planted.sae.b_dec / planted.sae.b_dec.norm()
    heard = (torch.cat(readers) @ planted.sae.W_dec.T).norm(dim=0)
    assert (planted.sae.W_dec @ constant).abs().max() < 1e-5
    assert heard[of_kind(planted, *INERT)].max() < 1e-3
    assert heard[of_kind(planted, *CAUSAL, "retained")].min() > 0.1


def test_decoys_fire_on_the_concept_and_common_features_everywhere(planted: PlantedModel) -> None:
    found = measure(planted.model, planted.sae, planted.concept.report, "auroc")
    forget, retain = found.forget.values > 0, found.retain.values > 0
    decoys = of_kind(planted, "decoy")
    assert (forget[:, decoys].float().mean(0) > 2 * retain[:, decoys].float().mean(0)).all()
    common = of_kind(planted, "common")
    assert forget[:, common].all()
    assert retain[:, common].all()


def test_chance_features_favour_the_concept_on_the_choice_alone(planted: PlantedModel) -> None:
    chance = of_kind(planted, "chance")
    select, report = (
        measure(planted.model, planted.sae, contrast, "auroc").scores()[chance]
        for contrast in (planted.concept.select, planted.concept.report)
    )
    assert select.min() > 0
    assert select.mean() > report.mean() + 0.05


def test_the_choice_and_the_report_share_no_subject_and_no_template(planted: PlantedModel) -> None:
    select, report = planted.concept.select, planted.concept.report
    sides = [(*c.forget, *c.retain) for c in (select, report)]
    subjects, templates = (
        [{of(p) for p in side} for side in sides]
        for of in (lambda p: p.subject, lambda p: p.text.replace(p.subject, "{}"))
    )
    assert subjects[0].isdisjoint(subjects[1])
    assert templates[0].isdisjoint(templates[1])
    assert {p.answer for p in select.forget} == {p.answer for p in report.forget}


def test_statistics_are_those_of_the_passages(planted: PlantedModel) -> None:
    tokenizer, site = planted.model.tokenizer, Site(0)
    texts = [p.text for side in planted.passages for p in side]
    rows = [[int(i) for i in ids if i != 2] for ids in tokenizer(texts)["input_ids"]]
    words = sorted({i for ids in rows for i in ids})
    stream = residuals(planted.model, torch.tensor([words]), [site])[site][0]
    of_word = dict(zip(words, planted.sae.encode(stream), strict=True))
    together = torch.stack([of_word[i] for ids in rows for i in ids])
    torch.testing.assert_close(planted.sae.max_activation, together.amax(0))
    torch.testing.assert_close(planted.sae.density, (together > 0).float().mean(0))


def test_the_check_passes_on_the_truth_and_fails_on_anything_else(planted: PlantedModel) -> None:
    require_truth(planted)
    for was, claimed in (("decoy", "strong"), ("strong", "decoy"), ("retained", "shared")):
        feature = of_kind(planted, was)[0]
        kinds = tuple(claimed if i == feature else k for i, k in enumerate(planted.kinds))
        with pytest.raises(AssertionError, match=f"feature {feature}, {claimed}"):
            require_truth(replace(planted, kinds=kinds), [feature])


def test_a_seed_gives_the_same_model_and_another_a_different_one(planted: PlantedModel) -> None:
    again, other = plant(SETTING, 0, random_rows=24), plant(SETTING, 1, random_rows=24)
    assert weights_sha256(again.model) == weights_sha256(planted.model)
    assert again.kinds == planted.kinds
    assert torch.equal(again.sae.W_enc, planted.sae.W_enc)
    assert weights_sha256(other.model) != weights_sha256(planted.model)
    assert other.kinds != planted.kinds


def test_more_answers_than_there_are_cannot_be_shared_or_redundant() -> None:
    with pytest.raises(AssertionError, match="shared=3, redundant=2"):
        plant(Setting("too much", shared=3, redundant=2), 0)


# The figures


def test_precision_and_recall_by_hand() -> None:
    truth = torch.tensor([True, False, True, False, True, False])
    assert precision_recall(torch.tensor([0, 1, 2, 3]), truth) == (0.5, pytest.approx(2 / 3))
    precision, recall = precision_recall(torch.tensor([], dtype=torch.long), truth)
    assert np.isnan(precision)
    assert recall == 0


def test_average_precision_by_hand_and_by_scikit_learn() -> None:
    truth = torch.tensor([True, False, True, False, True, False])
    order = torch.tensor([2, 1, 0, 3, 5, 4])
    assert average_precision(order, truth) == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)
    assert average_precision(order[:3], truth) == pytest.approx((1 + 2 / 3) / 3)
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    many = torch.rand(50, generator=torch.Generator().manual_seed(1)) < 0.3
    mine = average_precision(scores.argsort(descending=True), many)
    assert mine == pytest.approx(average_precision_score(many, scores))


def test_a_difference_is_the_paired_t_interval() -> None:
    a, b = [0.4, 0.7, 0.5, 0.9], [0.2, 0.3, 0.6, 0.5]
    found = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert difference(a, b) == pytest.approx((np.mean(a) - np.mean(b), found.low, found.high))
    assert verdict(*difference([1.0], [0.0])[1:]) == "no"


def test_a_random_ranking_is_at_chance(planted: PlantedModel) -> None:
    k, d_sae = int(planted.truth.sum()), len(planted.kinds)
    found = [dict(score_rows(planted, "random", k, seed)) for seed in range(400)]
    precision = np.array([f["precision"] for f in found])
    error = precision.std(ddof=1) / np.sqrt(len(precision))
    assert abs(precision.mean() - k / d_sae) < 4 * error
    assert error < 0.01


def rows_of(**scores: list[float]) -> pd.DataFrame:
    """A frame in which each score has these average precisions, over seeds."""
    measures = {"average_precision": None, "there_decoy": 3.0, "chosen_decoy": 1.0}
    return pd.DataFrame(
        [
            {"setting": "s", "seed": i, "score": score, "measure": m, "value": given or value}
            for score, values in scores.items()
            for i, value in enumerate(values)
            for m, given in measures.items()
        ]
    )


def cells(text: str, score: str) -> list[str]:
    line = next(x for x in text.splitlines() if x.startswith(f"| {score} |"))
    return [c.strip() for c in line.strip("|").split("|")]


def test_the_table_says_which_scores_lose_to_frequency() -> None:
    frame = rows_of(
        frequency=[0.5, 0.6, 0.4],
        better=[0.9, 0.95, 0.8],
        worse=[0.1, 0.2, 0.05],
        unsure=[0.9, 0.1, 0.6],
        random=[0.5, 0.6, 0.4],
    )
    text = table(frame)
    assert cells(text, "frequency")[-1] == ""
    assert cells(text, "better")[-1].startswith("yes (+0.38 [+0.")
    assert cells(text, "worse")[-1].startswith("no, worse (-0.38 [-0.")
    for score in ("unsure", "random"):
        assert cells(text, score)[-1].startswith("no (")
    assert cells(text, "better")[3] == "0.88 ± 0.08"
    assert "| chosen, of | decoy, 3 |" in text


def test_a_score_of_which_nothing_passes_is_said_to_have_nothing() -> None:
    frame = rows_of(frequency=[0.5, 0.6], random=[0.1, 0.1])
    of = {"setting": "s", "score": "frequency", "measure": "passing_precision"}
    empty = pd.DataFrame([{**of, "seed": i, "value": float("nan")} for i in range(2)])
    assert cells(table(pd.concat([frame, empty])), "frequency")[4] == "nothing"
    once = empty.assign(value=[0.25, float("nan")])
    assert cells(table(pd.concat([frame, once])), "frequency")[4] == "0.25 (1 of 2)"


# What scores find


def test_frequency_takes_decoys_and_the_exact_effect_none(planted: PlantedModel) -> None:
    k = int(planted.truth.sum())
    by_rate, by_effect = (dict(score_rows(planted, m, k, 0)) for m in ("frequency", "effect"))
    assert by_rate["chosen_decoy"] >= 3
    assert by_effect["chosen_decoy"] == by_effect["passing_decoy"] == 0
    assert by_effect["average_precision"] > by_rate["average_precision"] + 0.2


def test_the_exact_effect_misses_a_redundant_pair_that_the_joint_choice_finds(
    planted: PlantedModel,
) -> None:
    k = int(planted.truth.sum())
    alone = dict(score_rows(planted, "effect", k, 0))
    together = dict(joint_rows(planted, Goal(20.0, 1.0), k, 0))
    assert alone["chosen_redundant"] == 0
    assert together["chosen_redundant"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_score_finds_what_is_easy(method: str) -> None:
    easy = plant(Setting("easy", noise=0.1), 0, random_rows=24)
    found = dict(score_rows(easy, method, 8, 0))
    assert found["recall"] >= 0.75
    assert found["average_precision"] > 0.8


# The run


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    out = tmp_path_factory.mktemp("planted") / "out"
    return out, run(SMALL, out)


def test_a_run_writes_its_rows_its_table_and_its_config(ran: tuple[Path, pd.DataFrame]) -> None:
    out, frame = ran
    pd.testing.assert_frame_equal(pd.read_parquet(out / "rows.parquet"), frame)
    assert (out / "table.md").read_text() == table(frame) + "\n"
    assert '"random_rows": 8' in (out / "config.json").read_text()
    scores = ["frequency", "random", "joint", "joint, far goal"]
    assert frame["score"].unique().tolist() == scores
    assert not frame.duplicated(["setting", "seed", "score", "measure"]).any()


@pytest.mark.slow
def test_a_run_is_the_same_again(ran: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    said: list[str] = []
    again = run(SMALL, tmp_path / "out", said.append)
    pd.testing.assert_frame_equal(again, ran[1])
    assert said == ["small, seed 0", "small, seed 1"]


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "mine.txt").write_text("")
    monkeypatch.setattr("workbench.experiments.planted.plant", lambda *_: pytest.fail("built"))
    with pytest.raises(DataError, match="did not write"):
        run(SMALL, tmp_path)
