"""What the log of a block counts, against numbers by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hooks.tiny import At, direction, shift
from workbench.errors import SiteError
from workbench.hooks import FireLog, Site, edited, residuals


def first_token(resid: Tensor) -> Tensor:
    """Changes one coordinate of one token."""
    change = torch.zeros_like(resid)
    change[:, 0, 5] = 1.0
    return resid + change


def test_numbers_by_hand() -> None:
    edits = [shift(0.0, Site(0)), shift(0.0, Site(1, "resid_mid"))]
    log = FireLog(edits, [torch.device("cpu")] * 2)
    before = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]])
    after = torch.tensor([[[3.0, 9.0], [0.0, 2.0], [1.0, 0.5]]])
    log.add(0, before, after)
    assert (log.calls, log.tokens, log.changed) == ([1, 0], [3, 0], [2, 0])
    assert log.relative_change == [pytest.approx((5 / 5 + 0.5 / 1) / 2), 0.0]
    log.add(0, before[:, :1], 3 * before[:, :1])
    assert (log.calls, log.tokens, log.changed) == ([2, 0], [4, 0], [3, 0])
    assert log.relative_change == [pytest.approx((1 + 0.5 + 2) / 3), 0.0]
    assert str(log) == (
        "At at blocks.0.hook_resid_post: 2 forward passes, 3 of 4 tokens changed, "
        "by 1.167 of the stream's norm\n"
        "At at blocks.1.hook_resid_mid: 0 forward passes, 0 of 0 tokens changed, "
        "by 0.000 of the stream's norm"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_counted_at_least_in_float32(dtype: torch.dtype) -> None:
    log = FireLog([shift(0.0, Site(0))], [torch.device("cpu")])
    before = torch.full((1, 2, 1024), 200.0, dtype=dtype)  # whose norm is over float16's largest
    log.add(0, before.repeat(1, 1, 200), before.repeat(1, 1, 200) * 2)
    assert log.changed == [2] and log.relative_change == [pytest.approx(1.0)]


def test_log_counts_calls_tokens_and_changed_tokens(model: Any, tokens: Tensor) -> None:
    batch, pos = tokens.shape
    edits = [At(Site(0), first_token), At(Site(1), lambda resid: resid), shift(1.0, Site(2))]
    with edited(model, edits) as log:
        model(tokens)
        assert (log.calls, log.changed) == ([1, 1, 1], [batch, 0, batch * pos])
        model(tokens[:1])
        model(tokens[:, :2])
        inside = str(log)
    seen = batch * pos + pos + batch * 2
    assert log.calls == [3, 3, 3]
    assert log.tokens == [seen] * 3
    assert log.changed == [batch + 1 + batch, 0, seen]
    assert str(log) == inside
    assert inside.startswith("At at blocks.0.hook_resid_post: 3 forward passes, ")


def test_size_of_the_change_is_relative_to_the_stream(model: Any, tokens: Tensor) -> None:
    sites = [Site(0), Site(1, "resid_mid"), Site(2, "resid_pre")]
    edits = [shift(0.1 * direction(), sites[0]), At(sites[1], lambda r: 1.5 * r)]
    before = residuals(model, tokens, sites[:1])[sites[0]]
    with edited(model, [*edits, At(sites[2], first_token)]) as log:
        late = residuals(model, tokens, sites[2:])[sites[2]] - first_token(torch.zeros(1, 1, 32))
    by_hand = (0.1 * direction().norm() / before.norm(dim=-1)).mean()
    assert log.relative_change[:2] == [pytest.approx(by_hand.item()), pytest.approx(0.5)]
    by_hand = (1 / late[:, 0].norm(dim=-1)).mean()
    assert log.relative_change[2] == pytest.approx(by_hand.item(), rel=1e-4)


def test_counting_leaves_no_graph_and_takes_part_in_none(model: Any, tokens: Tensor) -> None:
    vector = direction().requires_grad_()
    with edited(model, [shift(vector, Site(1))]) as log, torch.inference_mode():
        model(tokens)
    with edited(model, [shift(vector, Site(1))]) as log:
        model(tokens)
    assert not any(held.requires_grad for held in [*log._counts, *log._shares])


def test_edit_that_never_fires_is_an_error(model: Any) -> None:
    with (
        pytest.raises(SiteError, match=r"edits at blocks\.2\.hook_resid_pre never fired"),
        edited(model, [shift(1.0, Site(2, "resid_pre"))]),
    ):
        pass


def test_one_silent_edit_among_others_is_an_error(model: Any, tokens: Tensor) -> None:
    given = [shift(1.0, Site(0)), shift(1.0, Site(2))]
    with (
        pytest.raises(SiteError, match=r"edits at blocks\.2\.hook_resid_post never"),
        edited(model, given),
    ):
        residuals(model, tokens, [Site(1)])


def test_must_fire_false_allows_silence(model: Any) -> None:
    with edited(model, [shift(1.0, Site(0))], must_fire=False) as log:
        pass
    assert log.calls == [0] and log.changed == [0] and log.relative_change == [0.0]


def test_a_failure_in_the_block_is_not_hidden_by_silence(model: Any) -> None:
    with pytest.raises(ValueError, match="mine"), edited(model, [shift(1.0, Site(0))]):
        raise ValueError("mine")
