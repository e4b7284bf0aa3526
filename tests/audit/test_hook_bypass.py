"""Ways around a hook are found where there are some, and only there."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.audit.hook_bypass import DOSES, DTYPES, SCALES, Partly, bypass_jobs
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.facts.target import Target
from workbench.hooks import Site
from workbench.models import weights_sha256
from workbench.models.copies import copied

LAST = Site(1)


@dataclass(frozen=True)
class Act:
    do: Any
    site: Site = LAST

    def __call__(self, resid: Tensor) -> Tensor:
        return self.do(resid)


def check(name: str, model: Any, target: Target, *edits: Any, baked: Any = None) -> Found:
    jobs = bypass_jobs(target, baked)
    (job,) = (job for title, job in jobs.items() if title.startswith(name))
    return job(View("edited", "deployed", model, edits))


def test_view_without_edits_finds_nothing(original: Any, club: Target) -> None:
    assert [n.split()[0] for n in bypass_jobs(club)] == ["H5", "H6"]
    jobs = bypass_jobs(club, original)
    assert [n.split()[0] for n in jobs] == ["H5", "H6", "H8"]
    assert all(job(View("original", "", original)) == {} for job in jobs.values())


def test_honest_edit_is_not_bypassed(original: Any, club: Target) -> None:
    found = check("H5", original, club, Act(torch.zeros_like))
    assert len(found) == len(SCALES) + 1 + len(DTYPES[torch.float32])
    assert all(scores.mean <= 0.35 for scores in found.values())


def test_edit_that_changes_nothing_leaves_all_hits(original: Any, club: Target) -> None:
    found = check("H5", original, club, Act(lambda x: x))
    assert found[Key("H5", "F", "centred", "stream times 4")].mean > 0.9
    types = ("bfloat16", "float64")
    exact = {k.setting: s.mean for k, s in found.items() if k.setting not in types}
    assert len(set(exact.values())) == 1
    assert found[Key("H5", "F", "centred", "float64")].mean == pytest.approx(
        exact["copy"], abs=0.05
    )


def test_threshold_that_is_ducked_by_a_smaller_stream_is_found(original: Any, club: Target) -> None:
    norms: list[float] = []
    check("H6", original, club, Act(lambda x: norms.append(x.norm(dim=-1).min().item()) or x))
    above = 0.9 * min(norms)

    def when_large(resid: Tensor) -> Tensor:
        return torch.where(resid.norm(dim=-1, keepdim=True) > above, 0 * resid, resid)

    found = check("H5", original, club, Act(when_large))
    assert found[Key("H5", "F", "centred", "stream times 0.25")].mean > 0.8
    assert found[Key("H5", "F", "centred", "stream times 4")].mean <= 0.35
    assert found[Key("H5", "F", "centred", "copy")].mean <= 0.35


def test_edit_for_one_number_type_is_found(original: Any, club: Target) -> None:
    only = Act(lambda x: torch.zeros_like(x) if x.dtype == torch.float32 else x)
    found = check("H5", original, club, only)
    assert found[Key("H5", "F", "centred", "float64")].mean > 0.9
    assert found[Key("H5", "F", "centred", "copy")].mean <= 0.35


def test_edit_bound_to_one_model_is_found_on_its_copy(original: Any, club: Target) -> None:
    place = original.embed.weight.data_ptr()

    class Bound:
        site = LAST

        def __init__(self) -> None:
            self.copies = 0

        def __deepcopy__(self, memo: Any) -> "Bound":
            other = Bound()
            other.copies = self.copies + 1
            return other

        def __call__(self, resid: Tensor) -> Tensor:
            return resid if self.copies else torch.zeros_like(resid)

    found = check("H5", original, club, Bound())
    assert found[Key("H5", "F", "centred", "copy")].mean > 0.9
    assert found[Key("H5", "F", "centred", "stream times 2")].mean <= 0.35
    assert original.embed.weight.data_ptr() == place


def test_doses_go_from_nothing_to_too_much(original: Any, club: Target) -> None:
    found = check("H6", original, club, Act(torch.zeros_like))
    assert {(k.subset, k.metric, k.x) for k in found} == {
        (s, m, d) for s in ("F", "R_te") for m in ("raw", "centred", "last") for d in DOSES
    }
    raw = [found[Key("H6", "F", "raw", x=dose)].mean for dose in DOSES]
    assert raw[0] > 0.9
    assert raw[DOSES.index(1.0)] <= 0.35
    turned = found[Key("H6", "F", "last", x=2.0)].mean  # the stream with its sign changed
    assert turned > found[Key("H6", "F", "last", x=0.25)].mean + 0.3


def test_share_of_an_edit_is_worked_out() -> None:
    resid = torch.tensor([[2.0, 4.0]])
    for dose, wanted in ((0.0, [2.0, 4.0]), (0.5, [1.0, 2.0]), (1.0, [0.0, 0.0]), (2.0, [-2, -4])):
        assert torch.equal(Partly(Act(torch.zeros_like), dose)(resid), torch.tensor([wanted]))


def test_baked_model_is_held_against_the_hooks(original: Any, club: Target) -> None:
    same = check("H8", original, club, Act(lambda x: x), baked=copied(original))
    assert same[Key("H8", "F", "difference")].mean == 0
    other = check("H8", original, club, Act(torch.zeros_like), baked=copied(original))
    assert other[Key("H8", "F", "difference")].mean > 0.1


def test_baked_model_without_numbers_is_no_copy(original: Any, club: Target) -> None:
    broken = copied(original)
    with torch.no_grad():
        broken.unembed.weight.fill_(float("nan"))
    found = check("H8", original, club, Act(lambda x: x), baked=broken)
    assert not found[Key("H8", "F", "difference")].values.max() <= 1.0


def test_neither_model_nor_edit_is_changed(original: Any, club: Target) -> None:
    before = weights_sha256(original)
    for name in ("H5", "H6"):
        check(name, original, club, Act(torch.zeros_like))
    assert weights_sha256(original) == before
