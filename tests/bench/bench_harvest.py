"""Harvesting and reading back, against the bare forward pass, SAELens' store and a plain read."""

import itertools
import tempfile
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from sae_lens.training.activations_store import ActivationsStore

from workbench.activations import Activations, harvest
from workbench.activations.chunks import Reading, chunks
from workbench.facts import load_facts
from workbench.hooks import Site, residuals
from workbench.models import load_model
from workbench.models.score import batches_by_length

from .timing import speed

CONTEXT, ROWS, WIDTH = 64, 2000, 512
SITE = Site(1)


@pytest.fixture(scope="module")
def model():
    return load_model("valley")


@pytest.fixture(scope="module")
def packed(model):
    """The world's texts end to end, cut into rows of one length: what SAELens' store makes."""
    rows = model.tokenizer([d.text for d in load_facts("valley").corpus])["input_ids"]
    ids = list(itertools.chain.from_iterable(rows))
    return [ids[i * CONTEXT : (i + 1) * CONTEXT] for i in range(ROWS)]


def all_batches(model, source):
    """Tokens of the forward passes that a harvest makes."""
    (chunk,) = chunks(model, source, Reading((SITE,), "float32", "drop", 1024, 10**9))
    lengths = chunk.lengths.tolist()
    for batch in batches_by_length([range(n) for n in lengths]):
        yield chunk.tokens[chunk.first[batch][:, None] + torch.arange(lengths[batch[0]])]


@pytest.mark.parametrize("kind", ["texts of the world", "rows of 64 tokens"])
def test_harvest_to_disk_against_the_bare_forward_pass(model, packed, kind):
    source = packed if "rows" in kind else [d.text for d in load_facts("valley").corpus][:10_000]
    batches = list(all_batches(model, source))

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            harvest(model, source, SITE, folder, progress=False)

    @torch.no_grad()
    def theirs():
        for tokens in batches:
            residuals(model, tokens, [SITE])

    assert speed(
        f"harvest to disk, {kind}",
        "the bare forward pass to the same layer, tokens ready",
        "≥ 0.95",
        ours,
        theirs,
        "the forward pass; beyond it: tokenizing, one copy of the rows into the file's pages, one "
        "SHA-256 of the file",
        unit=(sum(t.numel() for t in batches), "token"),
    )


@pytest.mark.filterwarnings("ignore::UserWarning:sae_lens")
@pytest.mark.parametrize("layer", [0, 1])
def test_harvest_against_the_store_of_sae_lens(model, packed, layer):
    """Both read rows of the same length in batches of the same size; theirs keeps nothing."""
    size = 16_384 // CONTEXT
    data = Dataset.from_dict({"input_ids": packed})

    def ours():
        with tempfile.TemporaryDirectory() as folder:
            harvest(model, packed, Site(layer), folder, progress=False)

    store = ActivationsStore(
        model=model,
        dataset=data,
        streaming=False,
        hook_name=f"blocks.{layer}.hook_out",
        hook_head_index=None,
        context_size=CONTEXT,
        d_in=model.cfg.d_model,
        n_batches_in_buffer=2 * size,
        total_training_tokens=ROWS,
        store_batch_size_prompts=size,
        train_batch_size_tokens=4096,
        prepend_bos=False,
        normalize_activations="none",
        device=torch.device("cpu"),
        dtype="float32",
        disable_concat_sequences=True,
    )
    batches = iter(store)

    def theirs():
        """As many rows, once its buffer is full: then it runs the model for as many."""
        for _ in range(ROWS * CONTEXT // 4096):
            next(batches)

    assert speed(
        f"harvest to disk, rows of 64 tokens, layer {layer}",
        "SAELens' ActivationsStore, nothing kept",
        "≥ 1.3",
        ours,
        theirs,
        "the forward pass that both make: ours is at the bound above, so the ratio is what the "
        "peer adds to it",
        repeats=7,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_reading_shuffled_batches_against_reading_the_same_bytes(model, tmp_path, dtype):
    """1 GiB in several shards, all in the page cache; 256 MiB are mixed at a time."""
    acts = planted(tmp_path, 2**30 // (WIDTH * dtype.itemsize), dtype)
    batches, size = acts.batches(4096), 4096
    n = acts.card.tokens // size

    def ours():
        for batch in itertools.islice(batches, n):
            assert len(batch) == size

    def theirs():
        buffer = bytearray(2**24)
        for name in acts.card.shards:
            with (acts.folder / name).open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    assert speed(
        f"shuffled minibatches, {dtype}".replace("torch.", ""),
        "reading the same bytes in order from the page cache",
        "≥ 0.7",
        ours,
        theirs,
        "memory: each row is copied twice, into the pool (on a thread of its own) and into the "
        "batch, and read once by the peer",
        unit=(n * size, "row"),
    )


def planted(folder: Path, rows: int, dtype: torch.dtype) -> Activations:
    """Random rows as a harvest writes them."""
    from tests.bench.planted import write

    return write(folder / "acts", torch.randn(rows, WIDTH).to(dtype), shards=4)
