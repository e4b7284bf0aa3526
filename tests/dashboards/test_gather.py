"""What dashboards say of features is what dense activations say."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from workbench.activations.texts import special_ids
from workbench.dashboards import DashboardConfig, Dashboards, make_dashboards
from workbench.dashboards.tallies import AROUND, BINS, GROUPS, OF_GROUP, TOP
from workbench.errors import DataError, SAEError
from workbench.facts import load_facts
from workbench.hooks import Site, residuals
from workbench.models import load_model
from workbench.sae.load import load_sae

SITE = Site(1)


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("valley")


@pytest.fixture(scope="module")
def sae() -> Any:
    return load_sae("valley/blocks.1.hook_resid_post")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [d.text for d in load_facts("valley").corpus[:400]]


@pytest.fixture(scope="module")
def run(model: Any, sae: Any, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = DashboardConfig(tokens=100_000, features_at_once=100)
    return make_dashboards(sae, model, None, tmp_path_factory.mktemp("d") / "run", texts, config)


@pytest.fixture(scope="module")
def dense(model: Any, sae: Any, texts: list[str]) -> list[tuple[list[int], Tensor]]:
    """Tokens and activations of every text by itself, nothing on BOS."""
    found = []
    with torch.no_grad():
        for text in texts:
            ids = model.tokenizer(text)["input_ids"]
            acts = sae.encode(residuals(model, torch.tensor([ids]), [SITE])[SITE])[0]
            special = torch.isin(
                torch.tensor(ids), torch.tensor(sorted(special_ids(model.tokenizer)))
            )
            found.append((ids, acts.masked_fill(special[:, None], 0)))
    return found


def some_features(dense: list[tuple[list[int], Tensor]]) -> list[int]:
    """The busiest, a rare one, and one in between."""
    count = torch.stack([(acts > 0).sum(0) for _, acts in dense]).sum(0)
    order = count.argsort()
    rare = int(order[(count[order] >= 25).nonzero()[0, 0]])
    return [int(order[-1]), int(order[len(order) * 3 // 4]), rare]


def test_counts_peaks_and_means_are_those_of_dense_activations(run, dense, model) -> None:
    overview = Dashboards(run).overview
    every = torch.cat([acts for _, acts in dense])
    counted = sum(token not in special_ids(model.tokenizer) for ids, _ in dense for token in ids)
    fired = (every > 0).sum(0)
    off = np.abs(overview["density"] * counted - fired.numpy())
    assert off.sum() <= 4, "beyond ties for the last of the k places, which rounding decides"
    assert np.allclose(overview["peak"], every.amax(0), rtol=1e-4, atol=1e-4)
    mean = (every.sum(0) / fired.clamp_min(1)).numpy()
    same = off.to_numpy() < 0.5
    assert np.allclose(overview["mean"][same], mean[same], rtol=1e-4, atol=1e-4)
    assert (overview["density"] == 0).any(), "a feature that never fires is to be among them"


def test_passages_are_the_highest_with_the_activation_of_every_token(run, dense) -> None:
    dashboards = Dashboards(run)
    for index in some_features(dense):
        feature = dashboards.feature(index)
        peaks = sorted((float(acts[:, index].max()) for _, acts in dense), reverse=True)
        shown = [max(p.acts) for p in feature.top]
        assert np.allclose(shown, peaks[: len(shown)], rtol=2e-3)
        assert len(shown) == min(TOP, sum(p > 0 for p in peaks))
        wanted = {tuple(dashboards.vocabulary[ids]): acts[:, index].numpy() for ids, acts in dense}
        for passage in feature.top[:5]:
            assert len(passage.tokens) == len(passage.acts) <= 2 * AROUND + 1
            best = passage.acts[passage.at]
            assert best == max(passage.acts), "it is shown for its highest token"
            match = [
                values[start : start + len(passage.tokens)]
                for tokens, values in wanted.items()
                for start in range(len(tokens))
                if tokens[start : start + len(passage.tokens)] == passage.tokens
            ]
            assert any(np.allclose(passage.acts, values, rtol=2e-3, atol=1e-3) for values in match)


def test_histograms_quantile_groups_and_positions(run, dense) -> None:
    dashboards = Dashboards(run)
    for index in some_features(dense):
        feature = dashboards.feature(index)
        values = torch.cat([acts[:, index] for _, acts in dense])
        values = values[values > 0].numpy()
        edges = np.linspace(0, values.max() * (1 + 1e-6), BINS + 1)
        assert sum(feature.histogram["all"]) == len(values)
        difference = np.abs(np.histogram(values, edges)[0] - np.array(feature.histogram["all"]))
        assert difference.sum() <= 4, "beyond rounding at the edges"
        assert len(feature.groups) == GROUPS
        ends = np.quantile(values, np.linspace(0, 1, GROUPS + 1), method="inverted_cdf")
        for i, group in enumerate(feature.groups):
            assert len(group) == OF_GROUP
            for passage in group:
                act = passage.acts[passage.at]
                assert ends[i] * 0.998 <= act <= ends[i + 1] * 1.002
        at = np.array([[float(acts[5, index]) > 0] for ids, acts in dense if len(ids) > 5])
        assert feature.positions[5] == pytest.approx(at.mean(), abs=1e-6)
        assert feature.positions[0] == 0, "BOS does not count"


def test_neighbours_and_logits(run, dense, model, sae) -> None:
    dashboards = Dashboards(run)
    rows = sae.W_dec.detach() / sae.W_dec.detach().norm(dim=-1, keepdim=True)
    fired = torch.cat([acts for _, acts in dense]) > 0
    for index in some_features(dense):
        feature = dashboards.feature(index)
        cosine = rows @ rows[index]
        cosine[index] = -1
        assert feature.like[0][0] == int(cosine.argmax())
        assert feature.like[0][1] == pytest.approx(float(cosine.max()), abs=1e-5)
        both = (fired & fired[:, [index]]).sum(0).float()
        jaccard = both / (fired | fired[:, [index]]).sum(0).clamp_min(1)
        jaccard[index] = 0
        assert feature.fire[0][1] == pytest.approx(float(jaccard.max()), abs=1e-5)
        with torch.no_grad():
            logits = model.unembed(model.ln_final(rows[index][None, None]))[0, 0]
        assert feature.up[0][0] == dashboards.vocabulary[int(logits.argmax())]
        assert feature.down[0][0] == dashboards.vocabulary[int(logits.argmin())]
        assert feature.up[0][1] == pytest.approx(float(logits.max() - logits.mean()), abs=1e-3)


def test_batches_of_features_change_nothing(run, model, sae, texts, tmp_path) -> None:
    config = DashboardConfig(tokens=100_000)
    whole = Dashboards(make_dashboards(sae, model, None, tmp_path / "run", texts, config))
    parts = Dashboards(run)
    assert whole.overview.equals(parts.overview)
    for index in (0, 99, 100, 1023):
        one, other = whole.feature(index), parts.feature(index)
        assert (one.top, one.histogram, one.like) == (other.top, other.histogram, other.like)


def test_search_finds_features_by_the_tokens_they_fire_on_and_write(run, dense) -> None:
    dashboards = Dashboards(run)
    index = some_features(dense)[0]
    feature = dashboards.feature(index)
    token = feature.top[0].tokens[feature.top[0].at]
    assert index in dashboards.search(token.upper()), "upper and lower case are one"
    assert index in dashboards.search(feature.up[0][0])
    assert dashboards.search("17").tolist() == [17]
    assert len(dashboards.search("")) == len(dashboards)
    assert len(dashboards.search("no such word anywhere")) == 0


def test_what_does_not_fit_is_refused_and_nothing_is_left(model, sae, texts, tmp_path) -> None:
    with pytest.raises(SAEError, match="wanted one of them"):
        make_dashboards(sae, model, None, tmp_path / "run")
    with pytest.raises(DataError, match="no text that fits"):
        make_dashboards(sae, model, None, tmp_path / "run", texts, DashboardConfig(tokens=1))
    with pytest.raises(SAEError, match="trained on weights"):
        make_dashboards(sae, load_model("valley/gold-0"), None, tmp_path / "run", texts)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="wanted a folder"):
        Dashboards(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("kept")
    with pytest.raises(DataError):
        make_dashboards(sae, model, None, tmp_path / "mine", texts)
    assert (tmp_path / "mine" / "work.txt").read_text() == "kept"


def test_what_a_user_saved_is_not_gathered_over(model, sae, texts, run, tmp_path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "edits" / "mine").mkdir(parents=True)
    with pytest.raises(DataError, match="holds edits"):
        make_dashboards(sae, model, None, copy, texts)
    assert (copy / "edits" / "mine").is_dir()


def test_a_feature_that_is_not_there(run) -> None:
    with pytest.raises(DataError, match="has 0 to 1023"):
        Dashboards(run).feature(1024)
