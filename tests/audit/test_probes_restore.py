"""What one vector took one vector brings back; a model that never knew stays as it is."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from workbench.audit.probes.restore import restore_jobs
from workbench.audit.statistics import Key
from workbench.audit.views import Found, View
from workbench.facts.target import Target
from workbench.hooks import Site


class Push:
    """Adds one large vector wherever it stands."""

    def __init__(self, vector: Tensor, site: Site) -> None:
        self.vector, self.site = vector, site

    def __call__(self, resid: Tensor) -> Tensor:
        return resid + self.vector.to(resid)


def measured(target: Target, original: Any, model: Any, *edits: Any) -> Found:
    plain = SimpleNamespace(W_dec=torch.eye(32), encode=lambda x: x)
    (job,) = restore_jobs(target, View("original", "", original), [(Site(1), plain)]).values()
    return job(View("edited", "deployed", model, edits))


def mean(found: Found, subset: str) -> float:
    values = [s.mean for k, s in found.items() if k.subset == subset]
    return sum(values) / len(values)


def test_constant_push_is_undone(original: Any, club: Target) -> None:
    vector = 30 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    found = measured(club, original, original, Push(vector, Site(1)))
    assert {k.fold for k in found} == {0, 1, 2}
    assert all(k[0] == "P13" and k.subset in "SV" for k in found)
    assert mean(found, "V") > 0.8


def test_two_dictionaries_of_one_site_are_two_jobs(original: Any, club: Target) -> None:
    plain = SimpleNamespace(W_dec=torch.eye(32), encode=lambda x: x)
    pairs = [(Site(1), plain), (Site(1), plain), (Site(0), plain)]
    assert len(restore_jobs(club, View("original", "", original), pairs)) == 3


def test_model_that_never_knew_is_taught_nothing(
    original: Any, club: Target, golds: list[Any]
) -> None:
    assert mean(measured(club, original, golds[0]), "V") <= 0.35


def test_no_label_and_no_scored_fact_is_used(original: Any, club: Target, moved: Any) -> None:
    vector = 30 * torch.randn(32, generator=torch.Generator().manual_seed(0))
    one, two = (
        measured(t, original, original, Push(vector, Site(1))) for t in (club, moved(club, "TSV"))
    )
    key = Key("P13", "V", "centred", Site(1).name, 0)
    assert one[key].mean > two[key].mean + 0.3  # the same steering, asked for other objects
