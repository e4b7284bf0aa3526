"""Edits do not make the host wait for the device, and go into compiled and captured graphs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.interventions.members import (
    CASES,
    KINDS,
    OF_DIRECTIONS,
    OF_FEATURES,
    OF_SEVERAL,
    ROWS,
    SUBSTITUTE,
    member,
    normal,
)
from workbench.hooks import edited
from workbench.interventions import Steer, load_edit, random_control, save_edit
from workbench.interventions.flow import Flow

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
WAITS = {
    "_local_scalar_dense",
    "equal",
    "is_nonzero",
    "masked_select",
    "nonzero",
    "nonzero_static",
    "repeat_interleave",
    "unique_dim",
    "_unique2",
}
"""Operations whose result the host must read before it goes on."""


class NoWaiting(TorchDispatchMode):
    """Raises at an operation that would make the host wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = [i for a in args if isinstance(a, list | tuple) for i in a]
        masks = [i for i in indices if isinstance(i, Tensor) and i.dtype == torch.bool]
        if name in WAITS or (name.startswith("index") and masks):
            raise AssertionError(f"{name} makes the host wait")
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def saes(make_sae: Callable) -> dict[str, Any]:
    return {kind: make_sae(kind) for kind in KINDS}


@pytest.fixture(params=CASES, ids="-".join)
def edit(request: pytest.FixtureRequest, saes: dict[str, Any]) -> Any:
    name, kind = request.param
    return member(name, saes[kind])


@pytest.fixture
def resid() -> Tensor:
    return 2 * normal(3, 6, 32, seed=2)


def test_no_member_reads_a_number_on_the_host(edit: Any, resid: Tensor) -> None:
    resid.requires_grad_()
    weights = normal(3, 6, 32)
    with NoWaiting():
        (edit(resid) * weights).sum().backward()
        if isinstance(edit, Flow):
            memory = edit.resume(resid[:, :3], None, resid[:, :3, 0] > -9)[1]
            edit.resume(resid[:, 3:], memory, resid[:, 3:, 0] > -9)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: (x > 0).nonzero(),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
    ],
)
def test_reading_a_number_on_the_host_is_found(wait: Callable, resid: Tensor) -> None:
    with NoWaiting(), pytest.raises(AssertionError, match="makes the host wait"):
        wait(resid)


# Compiled

COMPILED = [
    *((name, "topk") for name in OF_FEATURES | SUBSTITUTE | OF_DIRECTIONS | OF_SEVERAL),
    ("clamp active", "standard"),
    ("gate token weighted", "topk"),
    ("gate latched firing", "jumprelu"),
    ("gate share probe", "topk"),
]
"""Each kind of member once, since compiling one takes seconds."""


def in_a_fresh_process(
    edits: list[Any], model: Any, folder: Path, backend: str, device: str = "cpu"
) -> list[list[float]]:
    """The rows of `compiled.py`."""
    save_edit(edits, folder / "edits")
    model.save_pretrained(folder / "model")
    script = Path(__file__).with_name("compiled.py")
    done = subprocess.run(
        [sys.executable, str(script), str(folder), backend, device],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_compiled_model_is_edited_alike(
    saes: dict[str, Any], make_llama: Callable, tmp_path: Path
) -> None:
    """And every member compiles to one graph."""
    edits = [member(name, saes[kind]) for name, kind in COMPILED]
    model = make_llama()
    model.config.num_hidden_layers, model.model.layers = 2, model.model.layers[:2]
    rows = in_a_fresh_process(edits, model, tmp_path, "eager")
    for case, (alone, within, _) in zip(COMPILED, rows, strict=True):
        assert (case, alone < 1e-5, within < 1e-5) == (case, True, True)
    assert sum(changed > 1e-3 for *_, changed in rows) > 0.9 * len(rows)


@pytest.mark.slow
def test_model_compiled_by_inductor_is_edited_alike(
    saes: dict[str, Any], make_llama: Callable, tmp_path: Path
) -> None:
    """One member, in a model of two blocks, since building takes most of a minute."""
    model = make_llama()
    model.config.num_hidden_layers, model.model.layers = 2, model.model.layers[:2]
    edits = [member("sequence", saes["topk"])]
    ((alone, within, changed),) = in_a_fresh_process(edits, model, tmp_path, "inductor")
    assert max(alone, within) < 1e-4 < 1e-3 < changed


# On CUDA


@pytest.fixture(params=CASES, ids="-".join)
def cuda_edit(request: pytest.FixtureRequest, saes: dict[str, Any], tmp_path: Any) -> Any:
    name, kind = request.param
    (edit,) = load_edit(save_edit(member(name, saes[kind]), tmp_path / "edit"), "cuda")
    return edit


class TestOnCuda:
    pytestmark = gpu

    def test_result_is_that_of_the_cpu(self, cuda_edit: Any, resid: Tensor, tmp_path: Any) -> None:
        (on_cpu,) = load_edit(save_edit(cuda_edit, tmp_path / "again"))
        out = cuda_edit(resid.cuda())
        assert out.device.type == "cuda"
        torch.testing.assert_close(out.cpu(), on_cpu(resid), atol=1e-4, rtol=1e-4)

    def test_host_never_waits(self, cuda_edit: Any, resid: Tensor) -> None:
        resid = resid.cuda()
        cuda_edit(resid)
        torch.cuda.set_sync_debug_mode("error")
        try:
            cuda_edit(resid)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_short_types_are_kept(self, cuda_edit: Any, resid: Tensor, dtype: torch.dtype) -> None:
        short = resid.cuda().to(dtype)
        out = cuda_edit(short)
        assert out.dtype == dtype
        torch.testing.assert_close(out.float(), cuda_edit(short.float()), atol=0.05, rtol=0.02)

    def test_captured_graph_is_replayed_on_other_tokens(
        self, cuda_edit: Any, resid: Tensor
    ) -> None:
        given = resid.cuda()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            cuda_edit(given)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), torch.no_grad():
            out = cuda_edit(given)
        given.copy_(resid.flip(0).cuda())
        graph.replay()
        torch.testing.assert_close(out, cuda_edit(resid.flip(0).cuda()), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("name", ["clamp active", "steer simple", "project leace"])
    def test_captured_forward_pass_is_edited_in_replays(
        self, name: str, saes: dict[str, Any], make_llama: Callable, tmp_path: Any
    ) -> None:
        (edit,) = load_edit(save_edit(member(name, saes["topk"]), tmp_path / "edit"), "cuda")
        model = make_llama().cuda()
        tokens = torch.randint(4, 60, (2, 7)).cuda()
        others = torch.randint(4, 60, (2, 7)).cuda()

        def logits(tokens: Tensor) -> Tensor:
            with torch.no_grad():
                return model(tokens, use_cache=False).logits

        with edited(model, [edit]):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                logits(tokens)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = logits(tokens)
            tokens.copy_(others)
            graph.replay()
            torch.testing.assert_close(out, logits(others), atol=1e-3, rtol=1e-3)
        assert not torch.allclose(logits(others), out, atol=1e-3)

    def test_model_compiled_by_inductor_is_edited_alike(
        self, saes: dict[str, Any], make_llama: Callable, tmp_path: Path
    ) -> None:
        names = ("clamp active", "gate latched weighted", "sequence", "project leace")
        edits = [member(name, saes["topk"]) for name in names]
        rows = in_a_fresh_process(edits, make_llama(), tmp_path, "inductor", "cuda")
        assert all(max(alone, within) < 1e-3 for alone, within, _ in rows)

    def test_numbers_are_made_where_the_sae_is(self, make_sae: Callable) -> None:
        sae = make_sae("topk").to("cuda")
        for name in ("mean ablate active", "gate latched weighted", "steer simple"):
            control = random_control(member(name, sae), 1, ROWS.cuda())
            out = control(2 * normal(2, 5, 32).cuda())
            assert out.device.type == "cuda"
        assert Steer.decoder(sae, 3).direction.device.type == "cuda"
