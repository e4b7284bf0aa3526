"""SAEBench's protocol on planted models with a known score, and what a held-out half shows."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from workbench.errors import DataError, EditError, SAEError
from workbench.experiments.saebench import (
    GEMMA,
    ChoiceQuestion,
    Quiz,
    SAEBenchConfig,
    best_trial,
    concatenated_rows,
    fact_questions,
    firing_frequencies,
    halves,
    held_out,
    known,
    letter_questions,
    run,
    saebench,
    score,
    table,
    target_corpora,
    target_questions,
    top_features,
)
from workbench.hooks import Site, edited, residuals
from workbench.interventions import Clamp, but_bos
from workbench.models.load import load_model
from workbench.models.score import answer, ask

SMALL = SAEBenchConfig(controls=2, splits=10)


# The protocol's parts against what they are in SAEBench


def test_the_defaults_are_the_protocol_of_sixteen_trials():
    settings = SAEBenchConfig().settings()
    assert len(settings) == 16
    assert set(settings) == set(itertools.product((0.001, 0.01), (10, 20), (25, 50, 100, 200)))
    assert SAEBenchConfig().min_side_effect == 0.99


def saved(frequency: float) -> float:
    """As written by savetxt(fmt="%f") and read again."""
    return float(f"{frequency:f}")


@pytest.mark.parametrize("threshold", [0.001, 0.01])
def test_the_filter_is_the_handwritten_one_also_at_the_threshold(threshold):
    generator = torch.Generator().manual_seed(0)
    forget = torch.rand(200, generator=generator, dtype=torch.float64)
    near = torch.tensor([-1e-3, -1e-6, -6e-7, -4e-7, 0.0, 4e-7, 1e-6, 1e-3], dtype=torch.float64)
    retain = (threshold + near.repeat(25)).clamp_min(0)
    wanted = [i for i in range(200) if saved(retain[i].item()) < threshold]
    assert 0 < len(wanted) < 200
    wanted.sort(key=lambda i: saved(forget[i].item()), reverse=True)
    assert top_features(forget, retain, threshold) == wanted


def test_a_frequency_counts_with_six_decimals():
    forget = torch.tensor([0.6, 0.5, 4e-7, 0.0, 0.3], dtype=torch.float64)
    retain = torch.tensor([0.0009994, 0.0009994, 0.0, 0.0, 0.001], dtype=torch.float64)
    assert top_features(forget, retain, 0.001) == [0, 1]
    retain[1] = 0.0009996
    assert top_features(forget, retain, 0.001) == [0]


def test_of_equally_frequent_features_the_later_comes_first():
    forget = torch.tensor([0.2, 0.5, 0.2, 0.2], dtype=torch.float64)
    assert top_features(forget, torch.zeros(4, dtype=torch.float64), 0.01) == [1, 3, 2, 0]


def saebench_hook(sae, features, multiplier, resid):
    acts = sae.encode(resid)
    acts[:, 0, :] = 0
    error = resid - sae.decode(acts)
    clamped = acts.clone()
    clamped[..., features] = torch.where(acts[..., features] > 0, -multiplier, acts[..., features])
    return error + sae.decode(clamped)


def test_the_edit_is_saebenchs_hook(sae):
    resid = torch.randn(3, 7, 32, generator=torch.Generator().manual_seed(1))
    features = torch.tensor([3, 11, 40])
    wanted = saebench_hook(sae, features, 25.0, resid)
    got = but_bos(Clamp(sae, features, -25.0, "active", "absolute"))(resid)
    assert (got - resid).abs().max() > 10
    assert torch.allclose(got, wanted, atol=1e-4)
    assert torch.equal(got[:, 0], resid[:, 0])


def test_frequencies_leave_out_bos_padding_and_eos(bridge, make_sae, tokenizer):
    sae, marks = make_sae(), (tokenizer.bos_token_id, tokenizer.pad_token_id)
    rows = [tokenizer("we keep item toxin1 at")["input_ids"], tokenizer("a shelf")["input_ids"]]
    rows[1] += [tokenizer.pad_token_id] * 2 + [tokenizer.eos_token_id]
    count, seen = torch.zeros(sae.cfg.d_sae), 0
    for row in rows:
        stream = residuals(bridge, torch.tensor([row]), [Site(1)])[Site(1)][0]
        for token, at in zip(row, stream, strict=True):
            if token not in (*marks, tokenizer.eos_token_id):
                count, seen = count + (sae.encode(at[None])[0] > 0), seen + 1
    assert seen == 5 + 2
    assert torch.allclose(firing_frequencies(bridge, sae, rows), (count / seen).double())
    with pytest.raises(DataError, match="no tokens but BOS"):
        firing_frequencies(bridge, sae, [[tokenizer.bos_token_id, tokenizer.eos_token_id]])


def test_texts_are_laid_end_to_end_and_cut(tokenizer):
    long = " ".join(["item toxin1 home2"] * 4)
    rows = concatenated_rows([long, "too short", long], tokenizer, dataset_size=3, seq_len=7)
    words = tokenizer(long, add_special_tokens=False)["input_ids"]
    end = [*words, tokenizer.eos_token_id, *words]
    assert rows == [[tokenizer.bos_token_id, *end[i + 1 : i + 7]] for i in (0, 7, 14)]
    with pytest.raises(DataError, match="wanted 100 for a row"):
        concatenated_rows([long], tokenizer, seq_len=100)


# Questions


def test_facts_are_answered_as_the_scorer_answers_them(bridge, world):
    facts = world.facts[:8]
    quiz = Quiz(bridge, [(q, 0) for q in fact_questions(world, facts)])
    wanted = answer(bridge, bridge.tokenizer, world, ask(facts, "audit")).hits
    assert torch.equal(quiz.hits(), wanted)
    always = [answer(bridge, bridge.tokenizer, world, ask([f], "audit")).logprobs for f in facts]
    found = [
        ChoiceQuestion((q.prompt,), (int(logprobs[i].argmax()),), ((" home0",),) * 12, "g")
        for f, logprobs in zip(facts, always, strict=True)
        for i, q in enumerate(ask([f], "audit"))
    ]
    same = fact_questions(world, facts)
    told = [
        ChoiceQuestion(a.prompts, b.right, a.candidates, "g")
        for a, b in zip(same, found, strict=True)
    ]
    assert Quiz(bridge, [(q, 0) for q in told]).hits().all()


def test_a_candidate_is_its_likeliest_spelling_and_the_sum_of_its_tokens(bridge, tokenizer):
    candidates = (("home1 home2", "home3"), ("home4",), ("food1 home5 item", "toxin2 toxin3"))
    prompt = "we keep item toxin1 at"

    def logprob(spelling: str) -> float:
        head = tokenizer(prompt)["input_ids"]
        tail = tokenizer(spelling, add_special_tokens=False)["input_ids"]
        out = bridge(torch.tensor([head + tail]))[0].log_softmax(-1)
        return sum(out[len(head) - 1 + i, t].item() for i, t in enumerate(tail))

    likeliest = max(range(3), key=lambda c: max(map(logprob, candidates[c])))
    for right in range(3):
        asked = [(ChoiceQuestion((prompt,), (right,), candidates, "g"), 0)]
        assert Quiz(bridge, asked).hits().item() == (right == likeliest)


RECORD = {"question": "where is it {kept} ?", "choices": ["paris", "rome", "oslo", "{}"]}


class Reader(torch.nn.Module):
    """Reads its prompt letter by letter; names the letter before `paris`, or one it likes."""

    def __init__(self, likes: str = "", stumbles: str = "never") -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.likes, self.stumbles, self.cfg = likes, stumbles, SimpleNamespace(d_vocab=128)

    def tokenizer(self, text, add_special_tokens=True):
        if isinstance(text, list):
            return {"input_ids": [self.tokenizer(t)["input_ids"] for t in text]}
        return {"input_ids": [1] * add_special_tokens + [ord(c) for c in text]}

    def forward(self, tokens):
        logits = torch.zeros(*tokens.shape, 128)
        for row, ids in enumerate(tokens.tolist()):
            text = "".join(map(chr, ids))
            letter = self.likes or text[text.index(". paris") - 1]
            logits[row, -1, ord("B" if self.stumbles in text else letter)] = 9.0
        return logits


def test_options_stand_in_every_order_and_the_letter_follows():
    (question,) = letter_questions([RECORD | {"answer": 2}], "places")
    assert len(set(question.prompts)) == 24
    first = "about places.\nwhere is it {kept} ?\nA. paris\nB. rome\nC. oslo\nD. {}\nAnswer:"
    assert question.prompts[0].endswith(first)
    for prompt, right in zip(question.prompts, question.right, strict=True):
        assert f"\n{'ABCD'[right]}. oslo" in prompt
    assert question.candidates == tuple((x, f" {x}") for x in "ABCD")


def test_the_chat_template_stands_around_the_question():
    before, after = GEMMA
    (question,) = letter_questions([RECORD | {"answer": 0}], "it", before=before, after=after)
    assert question.prompts[0].startswith("<start_of_turn>user\nThe following are multiple choice")
    assert question.prompts[0].endswith("D. {}<end_of_turn>\n<start_of_turn>model\nAnswer: (")


def test_only_what_is_answered_right_in_every_order_is_known():
    wise = letter_questions([RECORD | {"answer": 0}, RECORD | {"answer": 1}], "places")
    assert known(Reader(), wise) == wise[:1]
    stumbling = Reader(stumbles="A. oslo\nB. rome\nC. {}\nD. paris")
    with pytest.raises(DataError, match="in every order"):
        known(stumbling, wise)
    first = wise[0]
    one_order = ChoiceQuestion(first.prompts[:1], first.right[:1], first.candidates, "g")
    assert known(stumbling, [one_order]) == (one_order,)


def test_a_model_that_likes_one_letter_knows_nothing():
    questions = letter_questions([RECORD | {"answer": i} for i in range(4)], "places")
    assert Quiz(Reader("A"), [(q, 0) for q in questions]).hits().tolist() == [True] + [False] * 3
    with pytest.raises(DataError, match="none of 4"):
        known(Reader("A"), questions)


def test_records_keep_their_group_and_stand_alone_without_one():
    records = [RECORD | {"answer": 0, "group": "x"}] * 2 + [RECORD | {"answer": 0}] * 2
    groups = [q.group for q in letter_questions(records, "places")]
    assert groups[0] == groups[1] == "x"
    assert len(set(groups)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 4}, "answer 4"),
        ({"answer": "A"}, "answer 'A'"),
        ({"choices": ["one"]}, "1 choices"),
        ({"choices": ["one", 2]}, "2 to 5 texts"),
        ({"question": None}, "wanted question"),
        ({"question": "so <end_of_turn> now"}, "<end_of_turn>"),
        ({"choices": ["a", "<end_of_turn>"]}, "<end_of_turn>"),
    ],
)
def test_a_broken_record_is_named(change, message):
    with pytest.raises(DataError, match=message):
        letter_questions([RECORD | {"answer": 0} | change], "it", reserved=["<end_of_turn>"])


@pytest.mark.parametrize(
    ("prompts", "right", "candidates"),
    [
        ((), (), (("a",), ("b",))),
        (("p",), (0, 1), (("a",), ("b",))),
        (("p",), (2,), (("a",), ("b",))),
        (("p",), (0,), (("a",),)),
        (("p",), (0,), (("a",), ())),
        (("p",), (0,), (("a",), ("",))),
    ],
)
def test_a_question_without_sense_is_refused(prompts, right, candidates):
    with pytest.raises(DataError, match="wanted"):
        ChoiceQuestion(prompts, right, candidates, "group")


# Scores


def test_the_score_is_the_lowest_accuracy_that_harms_little_enough():
    forget = np.zeros((3, 100), bool)
    side = np.ones((3, 100), bool)
    forget[0, :40], forget[1, :70] = True, True
    side[0, :1], side[2, :2] = False, False
    best = best_trial(forget, side, 0.99)
    assert (best, score(forget, best)) == (0, pytest.approx(0.6))
    side[0, :2] = False
    best = best_trial(forget, side, 0.99)
    assert (best, score(forget, best)) == (1, pytest.approx(0.3))
    side[:, :2] = False
    assert best_trial(forget, side, 0.99) is None
    assert score(forget, None) == 0


def noise(seed: int, trials: int = 16) -> tuple[np.ndarray, np.ndarray, tuple]:
    rng = np.random.default_rng(seed)
    names = [f"g{i // 5}" for i in range(200)]
    return rng.random((trials, 200)) < 0.5, np.ones((trials, 200), bool), (names, names)


def test_halves_share_no_group_and_follow_the_seed():
    groups = [f"g{i % 7}" for i in range(50)]
    half = halves(groups, 0)
    inside = {g for g, h in zip(groups, half, strict=True) if h}
    outside = {g for g, h in zip(groups, half, strict=True) if not h}
    assert (len(inside), len(outside)) == (3, 4)
    assert not inside & outside
    assert np.array_equal(half, halves(groups, 0))
    assert any(not np.array_equal(half, halves(groups, seed)) for seed in range(1, 6))
    with pytest.raises(DataError, match="1 group"):
        halves(["one"] * 9, 0)


def test_noise_scores_better_where_it_was_chosen_and_only_there():
    found = [held_out(*noise(seed), SAEBenchConfig(splits=50)) for seed in range(10)]
    inside = np.mean([f.mean_choosing_score for f in found])
    outside = np.mean([f.mean_unlearning_score for f in found])
    assert inside > 0.55
    assert abs(outside - 0.5) < 0.03
    full = [score(noise(seed)[0], best_trial(*noise(seed)[:2], 0.99)) for seed in range(10)]
    assert np.mean(full) > np.mean([f.unlearning_score for f in found]) + 0.02


def test_with_one_trial_there_is_nothing_to_gain_by_choosing():
    found = [held_out(*noise(seed, trials=1), SAEBenchConfig(splits=50)) for seed in range(10)]
    gains = [f.mean_choosing_score - f.mean_unlearning_score for f in found]
    assert abs(np.mean(gains)) < 0.02


def test_the_other_half_has_no_part_in_the_choice():
    forget, side, groups = noise(3)
    before = held_out(forget, side, groups, SMALL)
    other = ~halves(groups[0], SMALL.random_seed)
    forget[:, other], side[:, other] = True, False
    after = held_out(forget, side, groups, SMALL)
    assert (after.chosen, after.choosing_score) == (before.chosen, before.choosing_score)
    assert before.unlearning_score > 0
    assert (after.unlearning_score, after.side_effect_accuracy) == (0, 0)
    assert (after.n_questions, after.n_groups) == (100, 20)


def test_the_interval_holds_the_score_and_few_groups_make_it_as_wide_as_can_be():
    forget, side, groups = noise(4)
    found = held_out(forget, side, groups, SMALL)
    assert 0 < found.low < found.unlearning_score < found.high < 1
    few = ["a", "b", "c", "d"] * 50
    found = held_out(forget, side, (few, few), SMALL)
    assert (found.low, found.high) == (0, 1)


def test_where_no_trial_qualifies_both_scores_are_zero():
    forget, side, groups = noise(5)
    found = held_out(forget, ~side, groups, SMALL)
    assert found.chosen is None
    assert (found.choosing_score, found.unlearning_score, found.low, found.high) == (0, 0, 0, 0)
    assert (found.mean_choosing_score, found.mean_unlearning_score) == (0, 0)


# The whole on planted models


@pytest.fixture(scope="module")
def planted(make_llama, tokenizer):
    """A model without mixing: toxins lie along axis 0 and mean home0, foods 1 and home1."""
    llama = make_llama()
    words = tokenizer.get_vocab()
    with torch.no_grad():
        for layer in llama.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        axis = {w: 0 if "toxin" in w else 1 if "food" in w else 2 for w in words}
        for word, i in words.items():
            llama.model.embed_tokens.weight[i] = torch.eye(32)[axis[word]]
        llama.lm_head.weight.zero_()
        llama.lm_head.weight[words["home0"], 0] = 1
        llama.lm_head.weight[words["home1"], 1] = 1
    return load_model(llama, tokenizer=tokenizer)


@pytest.fixture
def make_planted_sae(make_sae):
    """Feature 0 fires on toxins, 1 on foods, 2 to 11 on all else; they write to their own axis."""

    def make(reads: tuple[int, ...] = (0,), writes: tuple[int, ...] = (0,)):
        sae = make_sae("standard", stats=())
        sae.W_dec.zero_()
        sae.W_dec[torch.arange(64), torch.arange(64) % 32] = 1
        sae.W_enc.zero_()
        sae.W_enc[1, 1], sae.W_enc[2, 2:12] = 1, 1
        sae.W_enc[list(reads), 0] = 1
        sae.W_dec[0] = torch.eye(32)[list(writes)].sum(0) / len(writes) ** 0.5
        sae.b_enc.zero_()
        sae.b_dec.zero_()
        fires = torch.zeros(64).index_fill(0, torch.arange(12), 0.5)
        sae.register_buffer("density", fires, persistent=False)
        sae.register_buffer("max_activation", 2 * fires, persistent=False)
        return sae

    return make


def about(kind: str, home: int, n: int = 20) -> list[ChoiceQuestion]:
    spellings = tuple((f"home{i}",) for i in range(3))
    kinds = 12 if kind == "toxin" else 20
    return [
        ChoiceQuestion((f"item {kind}{i % kinds}",), (home,), spellings, f"{kind}{i % kinds}")
        for i in range(n)
    ]


def corpora(tokenizer, retain=("food1", "food2")):
    forget = tokenizer(["item toxin1", "item toxin2"])["input_ids"]
    return forget, tokenizer([f"item {word}" for word in retain])["input_ids"]


def test_a_feature_of_the_concept_alone_scores_one_and_random_ones_zero(
    planted, make_planted_sae, tokenizer
):
    questions = about("toxin", 0), [*about("food", 1), *about("food", 2)]
    lines = []
    result = saebench(
        planted, make_planted_sae(), questions, corpora(tokenizer), SMALL, lines.append
    )
    assert result.unlearning_score == 1
    split = result.features.held_out
    assert (split.unlearning_score, split.low, split.high) == (1, 0, 1)  # 6 toxins: too few
    assert split.side_effect_accuracy == 1
    assert (result.n_forget, result.n_forget_asked) == (20, 20)
    assert (result.n_side_effect, result.n_side_effect_asked) == (20, 40)
    assert [t.features for t in result.features.trials] == [(0,)] * 16
    assert {t.forget_accuracy for t in result.features.trials} == {0.0}
    assert len(result.controls) == 2
    for control in result.controls:
        assert control.unlearning_score == 0
        assert all(len(t.features) == 1 and t.features != (0,) for t in control.trials)
    content = json.loads(json.dumps(result.as_dict()))
    assert content["eval_result_metrics"]["unlearning"]["unlearning_score"] == 1
    assert content["eval_config"]["n_features_list"] == [10, 20]
    assert content["features"]["held_out"]["unlearning_score"] == 1
    assert table([result]).count("\n") == 3
    assert "clamp the features that fire most" in lines


def test_a_feature_that_fires_on_retained_text_is_never_clamped(
    planted, make_planted_sae, tokenizer
):
    sae = make_planted_sae(reads=(0, 1), writes=(0, 1))
    questions = about("toxin", 0), about("food", 1)
    result = saebench(planted, sae, questions, corpora(tokenizer), SMALL)
    assert {t.features for t in result.features.trials} == {()}
    assert {t.forget_accuracy for t in result.features.trials} == {1.0}
    assert (result.unlearning_score, result.features.chosen) == (0, 0)


def test_an_edit_that_takes_the_rest_along_scores_zero(planted, make_planted_sae, tokenizer):
    sae = make_planted_sae(reads=(0, 1), writes=(0, 1))
    questions = about("toxin", 0), about("food", 1)
    result = saebench(planted, sae, questions, corpora(tokenizer, ("home3", "shelf")), SMALL)
    assert all(0 in t.features for t in result.features.trials)
    assert {t.forget_accuracy for t in result.features.trials} == {0.0}
    assert {t.side_effect_accuracy for t in result.features.trials} == {0.0}
    assert (result.unlearning_score, result.features.chosen) == (0, None)
    assert result.features.held_out.unlearning_score == 0


def test_every_trial_puts_saebenchs_hook_on_the_model(
    planted, make_planted_sae, tokenizer, monkeypatch
):
    used = []
    monkeypatch.setattr(
        "workbench.experiments.saebench.protocol.edited",
        lambda model, edits: used.extend(edits) or edited(model, edits),
    )
    sae, config = make_planted_sae(), SAEBenchConfig(controls=0, splits=1)
    saebench(planted, sae, (about("toxin", 0), about("food", 1)), corpora(tokenizer), config)
    assert len(used) == 16
    resid = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2)).abs()
    for edit, (_, _, multiplier) in zip(used, config.settings(), strict=True):
        wanted = saebench_hook(sae, torch.tensor([0]), float(multiplier), resid)
        assert torch.allclose(edit(resid), wanted, atol=1e-3)
        assert (edit(resid) - resid)[:, 1:].abs().max() > 20


def test_no_edit_is_left_on_the_model(planted, make_planted_sae, tokenizer):
    questions = about("toxin", 0), about("food", 1)
    saebench(planted, make_planted_sae(), questions, corpora(tokenizer), SMALL)
    assert Quiz(planted, [(q, 0) for q in about("toxin", 0)]).hits().all()


def test_what_the_protocol_cannot_work_on_is_refused(
    planted, make_planted_sae, make_sae, tokenizer
):
    questions, texts = (about("toxin", 0), about("food", 1)), corpora(tokenizer)
    long = make_planted_sae()
    long.W_dec.mul_(2)
    with pytest.raises(EditError, match="fold_W_dec_norm"):
        saebench(planted, long, questions, texts, SMALL)
    foreign = make_sae(model_sha256="0" * 64)
    with pytest.raises(SAEError, match="trained on weights"):
        saebench(planted, foreign, questions, texts, SMALL)
    bare = make_planted_sae()
    del bare.density
    with pytest.raises(SAEError, match="densities"):
        saebench(planted, bare, questions, texts, SMALL)
    assert not saebench(
        planted, bare, questions, texts, SAEBenchConfig(controls=0, splits=1)
    ).controls
    with pytest.raises(DataError, match="no questions"):
        saebench(planted, make_planted_sae(), ((), questions[1]), texts, SMALL)
    with pytest.raises(DataError, match="none of 20"):
        saebench(planted, make_planted_sae(), (about("toxin", 1), questions[1]), texts, SMALL)


@pytest.mark.parametrize(
    "setting",
    [
        {"retain_thresholds": ()},
        {"n_features_list": (0,)},
        {"multipliers": (25, -25)},
        {"min_side_effect": 1.5},
        {"controls": -1},
        {"splits": 0},
    ],
)
def test_a_sweep_that_cannot_be_made_is_refused(setting):
    with pytest.raises(DataError, match=next(iter(setting))):
        SAEBenchConfig(**setting)


# A target of a world


def test_questions_of_a_target_keep_clear_of_what_audits_score(world):
    target = world.target("toxins")
    forget, side = target_questions(target, sample=5)
    assert {q.group for q in forget} == set(target.folds["S"])
    tested = {f.subject for f in target.retain["R_te"]}
    asked = {q.group for q in side}
    assert len(asked) == 5
    assert not asked & (tested | set(target.entities))


def test_features_are_picked_on_texts_that_name_nothing_that_is_asked(world, tokenizer):
    target = world.target("toxins")
    forget, retain = ([tokenizer.decode(r) for r in c] for c in target_corpora(target, tokenizer))
    named = [{e for e in world.entity if f"{e} " in f"{text} "} for text in forget]
    assert set().union(*named) == set(target.folds["T"])
    assert not any(f"{e} " in text for text in retain for e in target.entities)
    assert len(forget) == 2 * len(target.folds["T"])
    assert len(retain) == 2 * 20


@pytest.mark.slow
def test_the_bundled_world_is_scored_and_written_whole(tmp_path):
    config = SAEBenchConfig((0.001,), (10,), (50,), controls=0, splits=5)
    results = run(config, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "saebench.json").read_text())
    assert [c["site"] for c in content] == [f"blocks.{i}.hook_resid_post" for i in (0, 1)]
    for found, result in zip(content, results, strict=True):
        metrics = found["eval_result_metrics"]["unlearning"]
        assert metrics["unlearning_score"] == result.unlearning_score
        assert found["n_forget"] > 300
        assert found["features"]["trials"][0]["side_effect_accuracy"] >= 0.99
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["multipliers"] == [50]
    assert len(written["model_sha256"]) == 64
    assert results[0].unlearning_score > 0
