"""What holds of every edit, and what each edit is, computed a second way."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.errors import EditError, SAEError
from workbench.hooks import Intervention, Site, edited, residuals
from workbench.interventions import Clamp, Gate, Rescale, load_edit, random_control, save_edit
from workbench.interventions.features import checked_features

FEATURES = torch.tensor([3, 17, 40])
INF = float("inf")


def gate(edit: Any, threshold: float = 0.5) -> Gate:
    weights = torch.randn(edit.sae.cfg.d_sae, generator=torch.Generator().manual_seed(1))
    return Gate(edit, edit.sae, weights, threshold)


MEMBERS: dict[str, Callable[[Any], Any]] = {
    "rescale": lambda sae: Rescale(sae, FEATURES, -0.5),
    "clamp active": lambda sae: Clamp(sae, FEATURES, -1.0),
    "clamp everywhere": lambda sae: Clamp(sae, FEATURES, -1.0, "everywhere"),
    "gated clamp": lambda sae: gate(Clamp(sae, FEATURES, -1.0, "everywhere")),
    "gated rescale": lambda sae: gate(Rescale(sae, FEATURES, 0.0)),
}
CONTROLS = {
    f"control of {name}": lambda sae, make=make: random_control(make(sae), seed=5)
    for name, make in MEMBERS.items()
}
NEUTRAL: dict[str, Callable[[Any], Any]] = {
    "rescale": lambda sae: Rescale(sae, FEATURES, 1.0),
    "gated clamp": lambda sae: gate(Clamp(sae, FEATURES, -1.0, "everywhere"), INF),
    "gated rescale": lambda sae: gate(Rescale(sae, FEATURES, 0.0), INF),
    "control": lambda sae: random_control(Rescale(sae, FEATURES, 1.0)),
    "gated control": lambda sae: random_control(gate(Clamp(sae, FEATURES, -1.0), INF)),
}


@pytest.fixture(params=[*MEMBERS, *CONTROLS])
def member(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Builds one kind of edit on an SAE."""
    return {**MEMBERS, **CONTROLS}[request.param]


@pytest.fixture
def resid() -> Tensor:
    return 2 * torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(2))


def changed_tokens(edit: Any, resid: Tensor) -> int:
    return int((edit(resid) != resid).any(-1).sum())


# The contract


def test_every_member_is_an_intervention_that_acts(
    member: Callable, sae: Any, resid: Tensor
) -> None:
    edit = member(sae)
    assert isinstance(edit, Intervention)
    assert edit.site == Site(1)
    assert changed_tokens(edit, resid) > 0


@pytest.mark.parametrize("neutral", NEUTRAL)
def test_neutral_setting_is_the_identity(neutral: str, sae: Any, resid: Tensor) -> None:
    assert torch.equal(NEUTRAL[neutral](sae)(resid), resid)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("shape", [(3, 6), (6,), (2, 2, 3), (1, 1)], ids=str)
def test_shape_and_type_are_kept(
    member: Callable, sae: Any, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    resid = torch.randn(*shape, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = member(sae)(resid)
    assert (out.shape, out.dtype) == (resid.shape, resid.dtype)
    assert out.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_device_is_kept(member: Callable, sae: Any, resid: Tensor) -> None:
    edit = member(copy.deepcopy(sae).to("cuda"))
    out = edit(resid.cuda())
    assert out.device.type == "cuda"
    torch.testing.assert_close(out.cpu(), member(sae)(resid))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_types_are_close_to_float32(
    member: Callable, sae: Any, resid: Tensor, dtype: torch.dtype
) -> None:
    edit, short = member(sae), resid.to(dtype)
    torch.testing.assert_close(edit(short).float(), edit(short.float()), atol=0.05, rtol=0.02)


def test_input_is_untouched_and_the_edit_is_pure(member: Callable, sae: Any, resid: Tensor) -> None:
    edit, given = member(sae), resid.clone()
    first = edit(given)
    assert torch.equal(given, resid)
    assert torch.equal(edit(given), first)


def test_rows_of_a_batch_do_not_see_each_other(member: Callable, sae: Any, resid: Tensor) -> None:
    edit = member(sae)
    one_by_one = torch.stack([edit(row[None])[0] for row in resid])
    torch.testing.assert_close(one_by_one, edit(resid))


def test_gradient_is_that_of_finite_differences(member: Callable, sae: Any, resid: Tensor) -> None:
    double, resid = copy.deepcopy(sae).to(torch.float64), resid.double()
    edit = half_open(member(double), resid)
    assert changed_tokens(edit, resid) > 0
    assert torch.autograd.gradcheck(edit, resid.requires_grad_(), fast_mode=True)


def test_members_are_frozen(member: Callable, sae: Any) -> None:
    edit = member(sae)
    with pytest.raises(AttributeError, match="cannot assign"):
        edit.sae = None


def test_edit_acts_in_a_model_and_leaves_no_trace(member: Callable, sae: Any, bridge: Any) -> None:
    tokens = torch.randint(4, 60, (8, 10), generator=torch.Generator().manual_seed(0))
    resid, before = residuals(bridge, tokens, [Site(1)])[Site(1)], bridge(tokens)
    with edited(bridge, [half_open(member(sae), resid)]) as log:
        after = bridge(tokens)
    assert log.changed[0] > 0 and not torch.equal(after, before)
    assert torch.equal(bridge(tokens), before)


def half_open(edit: Any, resid: Tensor) -> Any:
    """The same edit; a gate opens on some of these tokens, and none is near its threshold."""
    if not isinstance(edit, Gate):
        return edit
    found = edit.evidence(resid).unique()
    assert len(found) > 1
    middle = len(found) // 2
    return replace(edit, threshold=found[middle - 1 : middle + 1].mean().item())


# Saving


def test_saved_edit_gives_the_same_bits(
    member: Callable, sae: Any, resid: Tensor, tmp_path: Path
) -> None:
    edit = member(sae)
    (again,) = load_edit(save_edit(edit, tmp_path / "edit"))
    assert type(again) is type(edit)
    assert torch.equal(again(resid), edit(resid))
    (third,) = load_edit(save_edit([again], tmp_path / "edit"))
    assert torch.equal(third(resid), edit(resid))


def test_edit_with_a_double_sae_is_saved_as_it_is(
    member: Callable, sae: Any, resid: Tensor, tmp_path: Path
) -> None:
    edit = member(copy.deepcopy(sae).to(torch.float64))
    (again,) = load_edit(save_edit(edit, tmp_path / "edit"))
    assert torch.equal(again(resid.double()), edit(resid.double()))


def test_all_members_are_saved_together_on_one_sae(sae: Any, resid: Tensor, tmp_path: Path) -> None:
    edits = [make(sae) for make in {**MEMBERS, **NEUTRAL, **CONTROLS}.values()]
    folder = save_edit(edits, tmp_path / "edits")
    assert sorted(p.name for p in folder.glob("sae-*")) == ["sae-0"]
    again = load_edit(folder)
    assert len({id(e.sae) for e in again}) == 1
    for before, after in zip(edits, again, strict=True):
        assert torch.equal(after(resid), before(resid))


def test_edits_may_share_their_tensors(sae: Any, resid: Tensor, tmp_path: Path) -> None:
    features, weights = FEATURES.clone(), torch.ones(sae.cfg.d_sae)
    edits = [
        Gate(Clamp(sae, features), sae, weights, 0.0),
        Gate(Rescale(sae, features), sae, weights, 1.0),
    ]
    again = load_edit(save_edit(edits, tmp_path / "edit"))
    assert all(torch.equal(a(resid), b(resid)) for a, b in zip(again, edits, strict=True))


def test_each_of_several_saes_is_saved(make_sae: Callable, resid: Tensor, tmp_path: Path) -> None:
    """At two sites, and a gate that reads another SAE than its edit changes."""
    one, two = make_sae("topk"), make_sae("standard", seed=1)
    late = make_sae("topk", seed=2, site="blocks.2.hook_resid_pre")
    guarded = Gate(Clamp(one, FEATURES), two, torch.ones(64), 0.0)
    edits = [guarded, Rescale(late, FEATURES), Rescale(one, torch.tensor([1]))]
    again = load_edit(save_edit(edits, tmp_path / "edit"))
    assert len(list((tmp_path / "edit").glob("sae-*"))) == 3
    assert [e.site for e in again] == [Site(1), Site(2, "resid_pre"), Site(1)]
    assert again[0].edit.sae is again[2].sae is not again[0].sae
    for before, after in zip(edits, again, strict=True):
        assert torch.equal(after(resid), before(resid))


def test_edit_of_another_kind_is_not_saved(make_sae: Callable, tmp_path: Path) -> None:
    class Other:
        site = Site(1)

        def __call__(self, resid: Tensor) -> Tensor:
            return resid

    sae = make_sae()
    for edit in (Other(), [Clamp(sae, FEATURES), Other()], Gate(Other(), sae, torch.ones(64), 0.0)):
        with pytest.raises(EditError, match="a Other cannot be saved; wanted one of"):
            save_edit(edit, tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["edit.json", "edit.safetensors"])
@pytest.mark.parametrize("how", ["missing", "cut"])
def test_damaged_edit_is_an_error(make_sae: Callable, tmp_path: Path, name: str, how: str) -> None:
    path = save_edit(Clamp(make_sae(), FEATURES), tmp_path / "edit") / name
    path.write_bytes(path.read_bytes()[:-3]) if how == "cut" else path.unlink()
    with pytest.raises(EditError, match=r"no readable edit\.json and edit\.safetensors"):
        load_edit(tmp_path / "edit")


@pytest.mark.parametrize(
    ("old", "new"), [("edit/1", "edit/9"), ('"clamp"', '"prune"'), ('"sae-0"', '"sae-7"')]
)
def test_edit_that_names_what_is_not_there_is_an_error(
    make_sae: Callable, tmp_path: Path, old: str, new: str
) -> None:
    path = save_edit(Clamp(make_sae(), FEATURES), tmp_path / "edit") / "edit.json"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))
    with pytest.raises(EditError, match="wanted"):
        load_edit(path.parent)


# What the edits are


def by_sae_lens(sae: Any, resid: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The SAE of SAELens run with its error term and a hook on its features."""
    reference = copy.deepcopy(sae)
    with pytest.warns(DeprecationWarning, match="use_error_term"):
        reference.use_error_term = True

    def hook(acts: Tensor, hook: Any) -> Tensor:
        return torch.cat(
            [change(acts)[..., i : i + 1] if i in FEATURES.tolist() else acts[..., i : i + 1]
             for i in range(acts.shape[-1])],
            dim=-1,
        )  # fmt: skip

    return reference.run_with_hooks(resid, fwd_hooks=[("hook_sae_acts_post", hook)])


@pytest.mark.parametrize("scale", [0.0, 0.5, -2.0])
def test_rescale_is_sae_lens_with_error_term(sae: Any, resid: Tensor, scale: float) -> None:
    expected = by_sae_lens(sae, resid, lambda acts: scale * acts)
    assert not torch.allclose(expected, resid, atol=0.1)
    torch.testing.assert_close(Rescale(sae, FEATURES, scale)(resid), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dose", [0.0, -1.0, 3.0])
@pytest.mark.parametrize("where", ["active", "everywhere"])
def test_clamp_is_sae_lens_with_error_term(
    sae: Any, resid: Tensor, dose: float, where: Any
) -> None:
    def change(acts: Tensor) -> Tensor:
        value = (dose * sae.max_activation).expand_as(acts)
        return torch.where(acts > 0, value, acts) if where == "active" else value

    expected = by_sae_lens(sae, resid, change)
    found = Clamp(sae, FEATURES, dose, where)(resid)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_clamp_active_leaves_tokens_on_which_nothing_fires(sae: Any, resid: Tensor) -> None:
    fires = (sae.encode(resid)[..., FEATURES] > 0).any(-1)
    assert fires.any() and not fires.all()
    changed = (Clamp(sae, FEATURES)(resid) != resid).any(-1)
    assert torch.equal(changed, fires)


def test_edit_without_dose_ablates(sae: Any, resid: Tensor) -> None:
    torch.testing.assert_close(Rescale(sae, FEATURES)(resid), Clamp(sae, FEATURES, 0.0)(resid))


@pytest.mark.parametrize("kind", [Rescale, Clamp, None])
@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([], "one or more distinct indices"),
        ([1, 2, 1], "one or more distinct indices"),
        ([1, 64], "this SAE has 0 to 63"),
        ([5, -1], "this SAE has 0 to 63"),
    ],
    ids=str,
)
def test_features_are_validated(
    make_sae: Callable, kind: Callable | None, features: list[int], message: str
) -> None:
    with pytest.raises(EditError, match=message):
        (kind or checked_features)(make_sae(), torch.tensor(features, dtype=torch.long))


@pytest.mark.parametrize("features", [torch.tensor([[1, 2]]), torch.tensor(3), []], ids=str)
def test_features_that_are_no_list_are_an_error(make_sae: Callable, features: Any) -> None:
    with pytest.raises(EditError, match="one or more distinct indices"):
        checked_features(make_sae(), features)


def test_features_may_be_a_list(make_sae: Callable) -> None:
    assert torch.equal(checked_features(make_sae(), [3, 17, 40]), FEATURES)


def test_unknown_place_is_an_error(make_sae: Callable) -> None:
    """Also where types are not checked."""
    clamp = object.__new__(Clamp)
    for name, value in {"sae": make_sae(), "features": FEATURES, "where": "nowhere"}.items():
        object.__setattr__(clamp, name, value)
    with pytest.raises(EditError, match="'active' or 'everywhere'"):
        clamp.__post_init__()


def test_clamp_wants_to_know_the_largest_activations(make_sae: Callable) -> None:
    with pytest.raises(SAEError, match="doses are multiples of each feature's maximum"):
        Clamp(make_sae(stats=["density"]), FEATURES)
    Rescale(make_sae(stats=["density"]), FEATURES)


@pytest.mark.parametrize("kind", [Rescale, Clamp])
def test_sae_that_decodes_otherwise_is_refused(make_sae: Callable, kind: type) -> None:
    normalizing, rescaling = make_sae(), make_sae()
    normalizing.cfg.normalize_activations = "layer_norm"
    with pytest.raises(EditError, match="normalizes its input"):
        kind(normalizing, FEATURES)
    rescaling.cfg.rescale_acts_by_decoder_norm = True
    kind(rescaling, FEATURES)
    rescaling.W_dec.mul_(2)
    with pytest.raises(EditError, match="divides activations by the decoder's norms"):
        kind(rescaling, FEATURES)
    rescaling.fold_W_dec_norm()
    kind(rescaling, FEATURES)
