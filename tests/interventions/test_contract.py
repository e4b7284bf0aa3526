"""What holds of every edit, and what each edit is, computed a second way."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.interventions.members import (
    CASES,
    CONTROLS,
    FEATURES,
    KINDS,
    MEMBERS,
    OF_FEATURES,
    OF_SEVERAL,
    ROWS,
    SITE,
    gated,
    member,
    normal,
    unchecked,
)
from workbench.errors import EditError, SAEError
from workbench.hooks import Intervention, Remembering, Site, edited, residuals
from workbench.interventions import (
    Always,
    Clamp,
    Firing,
    Gate,
    MeanAblate,
    Probe,
    Project,
    Replace,
    Rescale,
    Sequence,
    Steer,
    Substitute,
    Weighted,
    load_edit,
    random_control,
    save_edit,
)
from workbench.interventions.features import checked_features
from workbench.interventions.flow import Flow

INF = float("inf")
NEUTRAL: dict[str, Callable[[Any], Any]] = {
    "rescale": lambda sae: Rescale(sae, FEATURES, 1.0),
    "replace, concept absent": lambda sae: Replace(silent(sae), FEATURES, torch.tensor([5])),
    "steer simple": lambda sae: Steer.decoder(sae, 3, 0.0),
    "steer capped": lambda sae: Steer.decoder(sae, 3, 1e6, "capped"),
    "project nothing": lambda sae: Project(SITE, torch.zeros(32, 1), ROWS[:1], ROWS[0]),
    "gated clamp": lambda sae: replace(gated(OF_FEATURES["clamp everywhere"])(sae), threshold=INF),
    "gated sequence": lambda sae: replace(MEMBERS["gated sequence"](sae), threshold=INF),
    "sequence": lambda sae: Sequence((Rescale(sae, FEATURES, 1.0), Steer.decoder(sae, 3, 0.0))),
    "control": lambda sae: random_control(Rescale(sae, FEATURES, 1.0)),
    "gated control": lambda sae: random_control(
        replace(gated(OF_FEATURES["clamp active"])(sae), threshold=INF)
    ),
}


def silent(sae: Any) -> Any:
    """The same SAE, whose chosen features never fire."""
    quiet = copy.deepcopy(sae)
    quiet.W_enc[:, FEATURES] = 0.0
    quiet.b_enc[FEATURES] = -100.0
    return quiet


@pytest.fixture(scope="module")
def saes(make_sae: Callable) -> dict[str, Any]:
    return {kind: make_sae(kind) for kind in KINDS}


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, saes: dict[str, Any]) -> tuple[str, Any]:
    """The name of a member, and the SAE to build it on."""
    name, kind = request.param
    return name, saes[kind]


@pytest.fixture
def edit(case: tuple[str, Any]) -> Any:
    return member(*case)


@pytest.fixture(params=KINDS)
def sae(request: pytest.FixtureRequest, saes: dict[str, Any]) -> Any:
    return saes[request.param]


@pytest.fixture
def resid() -> Tensor:
    return 2 * normal(3, 6, 32, seed=2)


def changed_tokens(edit: Any, resid: Tensor) -> int:
    return int((edit(resid) != resid).any(-1).sum())


# The contract


def test_every_member_is_an_intervention_that_acts(edit: Any, resid: Tensor) -> None:
    assert isinstance(edit, Intervention)
    assert isinstance(edit, Remembering) == isinstance(edit, Flow)
    assert edit.site == SITE
    assert changed_tokens(edit, resid) > 0


@pytest.mark.parametrize("neutral", NEUTRAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_neutral_setting_is_the_identity(
    neutral: str, make_sae: Callable, resid: Tensor, dtype: torch.dtype
) -> None:
    for kind in ("topk", "standard", "jumprelu"):
        edit, given = NEUTRAL[neutral](make_sae(kind)), resid.to(dtype)
        assert torch.equal(edit(given), given)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str
)
def test_shape_and_type_are_kept(edit: Any, dtype: torch.dtype) -> None:
    for shape in ((3, 6), (6,), (2, 2, 3), (1, 1)):
        resid = normal(*shape, 32).to(dtype)
        out = edit(resid)
        assert (out.shape, out.dtype) == (resid.shape, resid.dtype)
        assert out.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_types_are_close_to_float32(edit: Any, resid: Tensor, dtype: torch.dtype) -> None:
    short = resid.to(dtype)
    torch.testing.assert_close(edit(short).float(), edit(short.float()), atol=0.05, rtol=0.02)


def test_input_is_untouched_and_the_edit_is_pure(edit: Any, resid: Tensor) -> None:
    given = resid.clone()
    first = edit(given)
    assert torch.equal(given, resid)
    assert torch.equal(edit(given), first)


def test_rows_of_a_batch_do_not_see_each_other(edit: Any, resid: Tensor) -> None:
    one_by_one = torch.stack([edit(row[None])[0] for row in resid])
    torch.testing.assert_close(one_by_one, edit(resid))


def test_gradient_is_that_of_finite_differences(case: tuple[str, Any], resid: Tensor) -> None:
    name, sae = case
    resid = resid.double()
    edit = half_open(member(name, copy.deepcopy(sae).to(torch.float64)), resid)
    assert changed_tokens(edit, resid) > 0
    assert torch.autograd.gradcheck(edit, resid.requires_grad_(), fast_mode=True)


def test_members_are_frozen(edit: Any) -> None:
    for field in edit.__dataclass_fields__:
        with pytest.raises(AttributeError, match="cannot assign"):
            setattr(edit, field, None)


def test_edit_acts_in_a_model_and_leaves_no_trace(edit: Any, bridge: Any) -> None:
    tokens = torch.randint(4, 60, (8, 10), generator=torch.Generator().manual_seed(0))
    resid, before = residuals(bridge, tokens, [Site(1)])[Site(1)], bridge(tokens)
    with edited(bridge, [half_open(edit, resid)]) as log:
        after = bridge(tokens)
    assert log.changed[0] > 0 and not torch.equal(after, before)
    assert torch.equal(bridge(tokens), before)


def half_open(edit: Any, resid: Tensor) -> Any:
    """The same edit; a gate opens on some of these tokens, and none is near its threshold."""
    if not isinstance(edit, Gate) or isinstance(edit.evidence, Always):
        return edit
    found = edit.gathered(resid).unique()
    assert len(found) > 1
    middle = len(found) // 2
    inner = half_open(edit.edit, resid)
    return replace(edit, edit=inner, threshold=found[middle - 1 : middle + 1].mean().item())


# Along a sequence

FLOWS = [c for c in CASES if c[0] in MEMBERS and ("gate" in c[0] or c[0] in OF_SEVERAL)]


@pytest.fixture(params=[*FLOWS, ("but bos", "topk")], ids="-".join)
def flow(request: pytest.FixtureRequest, saes: dict[str, Any], resid: Tensor) -> Any:
    """An edit that remembers, which acts on some of the tokens."""
    name, kind = request.param
    return half_open(member(name, saes[kind]), resid)


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4, 5], [1], [5], [2, 3], []], ids=str)
def test_sequence_in_parts_is_edited_as_a_whole(flow: Any, resid: Tensor, cuts: list[int]) -> None:
    memory, parts = None, []
    for part in resid.tensor_split(cuts, dim=1):
        out, memory = flow.resume(part, memory)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, dim=1), flow(resid))


def test_without_its_memory_a_gate_starts_anew(saes: dict[str, Any], resid: Tensor) -> None:
    gate = half_open(MEMBERS["gate latched weighted"](saes["topk"]), resid)
    parts = torch.cat([gate(part) for part in resid.split(1, dim=1)], dim=1)
    assert not torch.allclose(parts, gate(resid))


def padded(resid: Tensor) -> tuple[Tensor, Tensor]:
    """Each row after another number of loud tokens of padding, and which tokens are real."""
    batch, pos, _ = resid.shape
    long = 30 * normal(batch, pos + batch, 32, seed=9)
    real = torch.zeros(batch, pos + batch, dtype=torch.bool)
    for row in range(batch):
        long[row, row + 1 : row + 1 + pos] = resid[row]
        real[row, row + 1 : row + 1 + pos] = True
    return long, real


def test_padding_on_the_left_changes_no_real_token(flow: Any, resid: Tensor) -> None:
    long, real = padded(resid)
    out = flow.resume(long, None, real)[0]
    torch.testing.assert_close(out[real].view_as(resid), flow(resid))
    memory, parts = None, []
    for part, is_real in zip(long.split(2, dim=1), real.split(2, dim=1), strict=True):
        out, memory = flow.resume(part, memory, is_real)
        parts.append(out)
    torch.testing.assert_close(torch.cat(parts, dim=1)[real].view_as(resid), flow(resid))


@pytest.mark.parametrize("name", ["gate latched weighted", "gate share firing", "but bos"])
def test_padding_that_is_not_told_of_is_taken_for_text(
    name: str, saes: dict[str, Any], resid: Tensor
) -> None:
    flow = half_open(MEMBERS[name](saes["topk"]), resid)
    long, real = padded(resid)
    assert not torch.allclose(flow(long)[real].view_as(resid), flow(resid))


# Saving


def test_saved_edit_gives_the_same_bits(edit: Any, resid: Tensor, tmp_path: Path) -> None:
    (again,) = load_edit(save_edit(edit, tmp_path / "edit"))
    assert type(again) is type(edit)
    assert torch.equal(again(resid), edit(resid))
    (third,) = load_edit(save_edit([again], tmp_path / "edit"))
    assert torch.equal(third(resid), edit(resid))


def test_edit_with_a_double_sae_is_saved_as_it_is(
    case: tuple[str, Any], resid: Tensor, tmp_path: Path
) -> None:
    edit = member(case[0], copy.deepcopy(case[1]).to(torch.float64))
    (again,) = load_edit(save_edit(edit, tmp_path / "edit"))
    assert torch.equal(again(resid.double()), edit(resid.double()))


def test_all_members_are_saved_together_on_one_sae(
    saes: dict[str, Any], resid: Tensor, tmp_path: Path
) -> None:
    edits = [make(saes["topk"]) for make in {**MEMBERS, **CONTROLS}.values()]
    folder = save_edit(edits, tmp_path / "edits")
    assert sorted(p.name for p in folder.glob("sae-*")) == ["sae-0"]
    again = load_edit(folder)
    assert len({id(e.sae) for e in again if hasattr(e, "sae")}) == 1
    for before, after in zip(edits, again, strict=True):
        assert torch.equal(after(resid), before(resid))


@pytest.mark.parametrize(
    "evidence",
    [
        lambda sae: Weighted(sae, normal(64)),
        lambda sae: Firing(sae, FEATURES),
        lambda sae: Probe(normal(32), -0.5, SITE),
        lambda sae: Probe(normal(32)),
        lambda sae: Always(),
    ],
)
@pytest.mark.parametrize("over", ["token", "latched", "share"])
def test_every_evidence_is_saved(
    evidence: Callable, over: Any, make_sae: Callable, resid: Tensor, tmp_path: Path
) -> None:
    sae = make_sae()
    gate = Gate(Substitute(sae), evidence(sae), 0.25, over)
    (again,) = load_edit(save_edit(gate, tmp_path / "edit"))
    assert type(again.evidence) is type(gate.evidence)
    assert (again.evidence.site, again.threshold, again.over) == (gate.evidence.site, 0.25, over)
    assert torch.equal(again.gathered(resid), gate.gathered(resid))


def test_edits_may_share_their_tensors(sae: Any, resid: Tensor, tmp_path: Path) -> None:
    features, weights = FEATURES.clone(), torch.ones(sae.cfg.d_sae)
    edits = [
        Gate(Clamp(sae, features), Weighted(sae, weights), 0.0),
        Gate(Rescale(sae, features), Weighted(sae, weights), 1.0),
    ]
    again = load_edit(save_edit(edits, tmp_path / "edit"))
    assert all(torch.equal(a(resid), b(resid)) for a, b in zip(again, edits, strict=True))


def test_each_of_several_saes_is_saved(make_sae: Callable, resid: Tensor, tmp_path: Path) -> None:
    """At two sites, and a gate that reads another SAE than its edit changes."""
    one, two = make_sae("topk"), make_sae("standard", seed=1)
    late = make_sae("topk", seed=2, site="blocks.2.hook_resid_pre")
    guarded = Gate(Clamp(one, FEATURES), Weighted(two, torch.ones(64)), 0.0)
    edits = [guarded, Rescale(late, FEATURES), Rescale(one, torch.tensor([1]))]
    again = load_edit(save_edit(edits, tmp_path / "edit"))
    assert len(list((tmp_path / "edit").glob("sae-*"))) == 3
    assert [e.site for e in again] == [Site(1), Site(2, "resid_pre"), Site(1)]
    assert again[0].edit.sae is again[2].sae is not again[0].evidence.sae
    for before, after in zip(edits, again, strict=True):
        assert torch.equal(after(resid), before(resid))


def test_edit_of_another_kind_is_not_saved(make_sae: Callable, tmp_path: Path) -> None:
    class Other:
        site = Site(1)

        def __call__(self, resid: Tensor) -> Tensor:
            return resid

    sae = make_sae()
    within = [Gate(Other(), Always(), 0.0), Sequence((Rescale(sae, FEATURES), Other()))]
    for edit in (Other(), [Clamp(sae, FEATURES), Other()], *within):
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
    ("old", "new"), [("edit/2", "edit/9"), ('"clamp"', '"prune"'), ('"sae-0"', '"sae-7"')]
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


@pytest.fixture(params=[*KINDS, "topk rescaled"])
def any_sae(request: pytest.FixtureRequest, make_sae: Callable) -> Any:
    """Also a TopK SAE that compares activations scaled by its decoder's norms, all one."""
    sae = make_sae(request.param.split()[0])
    if "rescaled" in request.param:
        sae.cfg.rescale_acts_by_decoder_norm = True
    return sae


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
def test_rescale_is_sae_lens_with_error_term(any_sae: Any, resid: Tensor, scale: float) -> None:
    expected = by_sae_lens(any_sae, resid, lambda acts: scale * acts)
    assert not torch.allclose(expected, resid, atol=0.1)
    found = Rescale(any_sae, FEATURES, scale)(resid)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dose", [0.0, -1.0, 3.0])
@pytest.mark.parametrize("where", ["active", "everywhere"])
@pytest.mark.parametrize("unit", ["max", "absolute"])
def test_clamp_is_sae_lens_with_error_term(
    any_sae: Any, resid: Tensor, dose: float, where: Any, unit: Any
) -> None:
    def change(acts: Tensor) -> Tensor:
        largest = any_sae.max_activation if unit == "max" else torch.ones(64)
        value = (dose * largest).expand_as(acts)
        return torch.where(acts > 0, value, acts) if where == "active" else value

    expected = by_sae_lens(any_sae, resid, change)
    found = Clamp(any_sae, FEATURES, dose, where, unit)(resid)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("where", ["active", "everywhere"])
def test_mean_ablation_is_sae_lens_with_error_term(any_sae: Any, resid: Tensor, where: Any) -> None:
    means = any_sae.encode(ROWS).mean(0)

    def change(acts: Tensor) -> Tensor:
        value = means.expand_as(acts)
        return torch.where(acts > 0, value, acts) if where == "active" else value

    expected = by_sae_lens(any_sae, resid, change)
    found = MeanAblate.fit(any_sae, FEATURES, ROWS, where)(resid)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_replace_is_a_clamp_of_others_where_the_concept_fires(sae: Any, resid: Tensor) -> None:
    others = torch.tensor([5, 29])
    fires = (sae.encode(resid)[..., FEATURES] > 0).any(-1, keepdim=True)
    assert fires.any() and not fires.all()
    acts = sae.encode(resid)
    wanted = acts.clone()
    wanted[..., FEATURES] = 0.0
    wanted[..., others] = 0.7 * sae.max_activation[others]
    expected = resid + fires * ((wanted - acts) @ sae.W_dec)
    found = Replace(sae, FEATURES, others, 0.7)(resid)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_feature_cannot_go_and_stay(make_sae: Callable) -> None:
    with pytest.raises(EditError, match=r"features \[17\] are to go and to stay"):
        Replace(make_sae(), FEATURES, torch.tensor([5, 17]))


def test_substitute_is_the_reconstruction(any_sae: Any, resid: Tensor) -> None:
    assert torch.equal(Substitute(any_sae)(resid), any_sae(resid))


def test_sequence_is_one_edit_after_the_other(sae: Any, resid: Tensor) -> None:
    edits = MEMBERS["sequence"](sae).edits
    expected = resid
    for edit in edits:
        expected = edit(expected)
    torch.testing.assert_close(Sequence(edits)(resid), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(Sequence(edits[::-1])(resid), expected, atol=1e-3)


@pytest.mark.parametrize("edits", [(), None], ids=["none", "two sites"])
def test_sequence_wants_edits_at_one_site(edits: Any, make_sae: Callable) -> None:
    late = Steer(Site(2), torch.ones(32))
    with pytest.raises(EditError, match="one or more edits at one site"):
        Sequence((Rescale(make_sae(), FEATURES), late) if edits is None else edits)


def test_means_are_one_finite_number_each(make_sae: Callable) -> None:
    with pytest.raises(EditError, match="wanted one finite mean each"):
        MeanAblate(make_sae(), FEATURES, torch.tensor([1.0, INF, 0.0]))
    with pytest.raises(EditError, match="no rows to take"):
        MeanAblate.fit(make_sae(), FEATURES, torch.zeros(0, 32))


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


def test_what_no_type_tells_is_an_error_where_types_are_not_checked(make_sae: Callable) -> None:
    sae = make_sae()
    clamp = {"sae": sae, "features": FEATURES, "where": "active", "unit": "max"}
    gate = {"edit": Rescale(sae, FEATURES), "evidence": Always(), "over": "mean"}
    for kind, fields, message in (
        (Clamp, clamp | {"where": "nowhere"}, "'active' or 'everywhere'"),
        (Clamp, clamp | {"unit": "mean"}, "'max' or 'absolute'"),
        (Gate, gate, "'token', 'latched' or 'share'"),
        (MeanAblate, clamp | {"means": torch.ones(2)}, "2 means for 3 features"),
    ):
        with pytest.raises(EditError, match=message):
            unchecked(kind, **fields)


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
