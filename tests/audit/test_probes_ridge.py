"""Many ridge regressions at once are scikit-learn's, one by one."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from workbench.audit.probes.linear import Frame
from workbench.audit.probes.ridge import Weights, fit_ridge

TIGHT = 1e-5


def example(n: int = 90, d: int = 6, k: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    noise = 0.7 * torch.randn(n, k, generator=generator)
    return x, (x @ torch.randn(d, k, generator=generator) + noise).argmax(1)


def fit(
    x: Tensor, label: Tensor, ridge: float, k: int = 4, start: Weights | None = None
) -> Weights:
    real, allowed = (
        torch.ones(label.shape, dtype=torch.bool),
        torch.ones(len(x), k, dtype=torch.bool),
    )
    return fit_ridge(x, label, real, allowed, torch.full((len(x),), ridge), start, TIGHT)


@pytest.mark.parametrize("ridge", [1e-3, 1e-2, 1e-1, 1.0, 10.0])
def test_probe_is_scikit_learns_logistic_regression(ridge: float) -> None:
    x, label = example()
    fitted, tested = slice(0, 60), slice(60, None)
    weights = fit(x[None, fitted], label[None, fitted], ridge)
    peer = LogisticRegression(C=1 / (ridge * 60), tol=1e-10, max_iter=10_000)
    peer.fit(x[fitted].double().numpy(), label[fitted].numpy())
    slope = weights.slope[0].numpy()
    np.testing.assert_allclose(slope, peer.coef_.T, atol=2e-3 * abs(peer.coef_).max())
    said = weights.logprobs(x[None, tested], torch.ones(1, 4, dtype=torch.bool))[0].exp().numpy()
    expected = peer.predict_proba(x[tested].double().numpy())
    np.testing.assert_allclose(said, expected, atol=2e-3)
    assert (said.argmax(1) == expected.argmax(1)).all()


def test_default_tolerance_gives_the_same_answers() -> None:
    x, label = example(400, 40, 8)
    real, allowed = torch.ones(1, 300, dtype=torch.bool), torch.ones(1, 8, dtype=torch.bool)
    loose = fit_ridge(x[None, :300], label[None, :300], real, allowed, torch.tensor([0.1]))
    tight = fit(x[None, :300], label[None, :300], 0.1, 8)
    rest = x[None, 300:]
    same = loose.logprobs(rest, allowed).argmax(-1) == tight.logprobs(rest, allowed).argmax(-1)
    assert same.float().mean() >= 0.98


def test_problems_are_solved_apart() -> None:
    """Neither other problems nor filling rows nor filling columns count."""
    (x1, y1), (x2, y2) = example(60, seed=1), example(30, k=3, seed=2)
    x, label = torch.full((2, 60, 6), 7.0), torch.zeros(2, 60, dtype=torch.long)
    real, allowed = torch.zeros(2, 60, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    x[0], x[1, :30], label[0], label[1, :30] = x1, x2, y1, y2
    real[0], real[1, :30], allowed[1, 3] = True, True, False
    both = fit_ridge(x, label, real, allowed, torch.tensor([0.1, 0.2]), tolerance=TIGHT)
    one, two = fit(x1[None], y1[None], 0.1), fit(x2[None], y2[None], 0.2, 3)
    torch.testing.assert_close(both.slope[0], one.slope[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(both.slope[1, :, :3], two.slope[0], atol=1e-4, rtol=1e-3)
    assert not both.slope[1, :, 3].any()


def test_start_changes_nothing_but_the_way() -> None:
    x, label = (t[None] for t in example())
    cold = fit(x, label, 0.01)
    warm = fit(x, label, 0.01, start=fit(x, label, 10.0))
    torch.testing.assert_close(cold.slope, warm.slope, atol=2e-3, rtol=1e-2)
    assert not torch.allclose(cold.slope, fit(x, label, 10.0).slope, atol=0.1)


@pytest.mark.parametrize("d", [6, 200])
def test_frame_changes_no_ridge_regression(d: int) -> None:
    """Nor where there are more dimensions than rows."""
    x, label = example(90, d)
    x = x * torch.linspace(0.1, 3, d)
    frame = Frame.of(x[None, :60])
    assert frame(x[None]).shape[2] == min(60, d)
    standard = (x - x[:60].mean(0)) / x[:60].std(0)
    turned, plain = frame(x[None]), standard[None]
    allowed, said = torch.ones(1, 4, dtype=torch.bool), []
    for rows in (turned, plain):
        weights = fit(rows[:, :60].contiguous(), label[None, :60], 0.1)
        said.append(weights.logprobs(rows[:, 60:], allowed).exp())
    torch.testing.assert_close(said[0], said[1], atol=2e-3, rtol=0)


def test_rows_that_are_all_alike_give_the_prior() -> None:
    label = torch.tensor([[0] * 30 + [1] * 60])
    weights = fit(torch.ones(1, 90, 3), label, 1.0, 2)
    said = weights.logprobs(torch.ones(1, 1, 3), torch.ones(1, 2, dtype=torch.bool))[0, 0].exp()
    torch.testing.assert_close(said, torch.tensor([1 / 3, 2 / 3]), atol=1e-3, rtol=0)
