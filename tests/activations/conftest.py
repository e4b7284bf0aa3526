"""Direct forward passes to compare with, and activations written by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from workbench.activations import Activations, ActivationsCard
from workbench.activations.shards import Shard
from workbench.artifacts import file_sha256, write_json
from workbench.hooks import Site

Rows = dict[tuple[int, int], tuple[int, Tensor]]
"""Document and position to token and row."""


@pytest.fixture(scope="session")
def direct(bridge: Any) -> Callable[..., Rows]:
    """Gives the rows of whole passes, one for each part that a document is cut into."""

    def rows(
        documents: Sequence[Sequence[int]], site: Site, context: int = 1024, first: int = 1
    ) -> Rows:
        found: Rows = {}
        for i, (bos, *own) in enumerate(documents):
            for start in range(0, max(1, len(own)), context - 1):
                tokens = [bos, *own[start : start + context - 1]]
                _, cache = bridge.run_with_cache(torch.tensor([tokens]))
                resid = cache[site.name][0].detach()
                for within in range(first if start == 0 else 1, len(tokens)):
                    found[i, start + within] = tokens[within], resid[within]
        return found

    return rows


@pytest.fixture(scope="session")
def stored() -> Callable[[Activations], Rows]:
    """Gives what a harvest holds, having checked that no place is there twice."""

    def rows(acts: Activations) -> Rows:
        document, position = (column.tolist() for column in acts.where())
        places = list(zip(document, position, strict=True))
        assert places == sorted(set(places))
        return dict(zip(places, zip(acts.tokens().tolist(), acts.rows(), strict=True), strict=True))

    return rows


@pytest.fixture(scope="session")
def assert_same_rows() -> Callable[[Rows, Rows], None]:
    def compare(found: Rows, expected: Rows) -> None:
        assert found.keys() == expected.keys() and expected
        for place, (token, row) in expected.items():
            assert found[place][0] == token
            torch.testing.assert_close(found[place][1], row)

    return compare


@pytest.fixture(scope="session")
def write_by_hand() -> Callable[..., Activations]:
    """Writes rows as a harvest would: shards of `shard_rows`, ten rows to a document."""

    def write(folder: Path, rows: Tensor, shard_rows: int, dtype: str = "float32") -> Activations:
        shards = {}
        where = {
            "document": torch.arange(len(rows)) // 10,
            "position": torch.arange(len(rows)) % 10,
        }
        columns = {**where, "token": torch.arange(len(rows)), "acts": rows}
        for i, first in enumerate(range(0, len(rows), shard_rows)):
            part = slice(first, first + shard_rows)
            path = folder / f"shard-{i:05d}.safetensors"
            shard = Shard(path, len(rows[part]), rows.shape[1], dtype)
            shard.reserve()
            for name, column in columns.items():
                shard.mapped(name, write=True).copy_(column[part])
            shards[path.name] = {"rows": shard.rows, "sha256": file_sha256(path)}
        card = ActivationsCard(
            site="blocks.1.hook_resid_post",
            model_sha256="5eed",
            model_name="planted",
            tokenizer_sha256="5eed",
            d_model=rows.shape[1],
            dtype=dtype,
            documents=(len(rows) + 9) // 10,
            tokens=len(rows),
            mean_norm=rows.float().norm(dim=-1).mean().item(),
            special_tokens="dropped",
            context_size=11,
            processing="none",
            versions={},
            shards=shards,
        )
        write_json(folder / "card.json", vars(card))
        return Activations.open(folder)

    return write
