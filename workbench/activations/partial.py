"""A harvest on its way to the disk, so that a killed run goes on where it was."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workbench.activations.chunks import Chunk, Reading, read_chunk
from workbench.activations.shards import Shard
from workbench.activations.store import Activations, ActivationsCard
from workbench.artifacts import file_sha256, mark_replaceable, require_replaceable, write_json
from workbench.errors import DataError
from workbench.hooks import Site
from workbench.models.load import model_name, tokenizer_sha256, versions, weights_sha256


class PartialHarvest:
    """A folder of shards, with a list of those that are complete.

    Its name is a hash of all that decides the rows besides the texts, so that the same harvest
    finds it again. Of the texts there is a hash for each part that became a shard.

    Attributes:
        chunks: of each part of the texts, its hash and its shards.
        complete: the texts have been read to their end.
        moved: sites whose folder an earlier run had put in its place when it was ended.
        seen: number of parts given in this run.
    """

    def __init__(self, model: Any, reading: Reading, out: Path) -> None:
        self.model, self.reading, self.out = model, reading, out
        self.made_from = {
            "model_sha256": weights_sha256(model),
            "tokenizer_sha256": tokenizer_sha256(model.tokenizer),
            **asdict(reading),
            "versions": versions(),
        }
        content = json.dumps(self.made_from, sort_keys=True).encode()
        self.folder = out / f"harvest-{hashlib.sha256(content).hexdigest()[:12]}.partial"
        self.log = self.folder / "progress.json"
        self.chunks, self.complete = self._begun()
        self.moved = {s for s in reading.sites if self.complete and self._is_in_place(s)}
        self.seen = 0

    def write(self, i: int, chunk: Chunk) -> None:
        """Writes shard i of every site where it is not there already.

        Raises:
            DataError: no room; the texts are others than those of the run before.
        """
        self.seen = i + 1
        if i == len(self.chunks):
            self._require(not self.complete, f"there were {i} parts")
            entry = {"sha256": chunk.sha256, "documents": chunk.documents, "rows": chunk.rows}
            self.chunks.append({**entry, "shards": {}})
        self._require(self.chunks[i]["sha256"] == chunk.sha256, f"they differ in part {i}")
        if missing := [site for site in self.reading.sites if not self._is_whole(site, i)]:
            self.chunks[i]["shards"] |= self._write_shards(i, chunk, missing)
            self._save()

    def finish(self) -> list[Activations]:
        """Writes the cards and puts the folders in their place; what stood there is deleted.

        Raises:
            DataError: there were no texts, or fewer than in the run before.
        """
        if not self.chunks:
            raise DataError("no texts were given: harvest wants at least one document")
        self._require(self.seen == len(self.chunks), "there were more of them")
        self.complete = True
        self._save()
        with _disk_errors(self.folder):
            for site in self.reading.sites:
                if site not in self.moved:
                    self._put_in_place(site)
            self._delete()
        return [Activations.open(self.out / s.name, verify=False) for s in self.reading.sites]

    # Taking up what an earlier run left

    def _begun(self) -> tuple[list[dict[str, Any]], bool]:
        if not self.log.is_file():
            return [], False
        try:
            begun = json.loads(self.log.read_text())
            return list(begun["chunks"]), bool(begun["complete"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.log}: not the progress of a harvest ({error}); delete its folder to begin "
                "anew"
            ) from error

    def _save(self) -> None:
        progress = {"made_from": self.made_from, "chunks": self.chunks, "complete": self.complete}
        with _disk_errors(self.log):
            write_json(self.log, progress)

    def _require(self, same: bool, difference: str) -> None:
        if not same:
            raise DataError(
                f"{self.folder}: an interrupted harvest began with other texts ({difference}); "
                "give the same texts, or delete this folder to begin anew"
            )

    def _is_whole(self, site: Site, i: int) -> bool:
        if site in self.moved:
            return True
        path, written = self._shard(site, i).path, self.chunks[i]["shards"].get(site.name)
        return written is not None and path.is_file() and file_sha256(path) == written["sha256"]

    def _is_in_place(self, site: Site) -> bool:
        try:
            return Activations.open(self.out / site.name).card == self._card(site)
        except DataError:
            return False

    # Writing

    def _shard(self, site: Site, i: int) -> Shard:
        path = self.folder / site.name / f"shard-{i:05d}.safetensors"
        return Shard(path, self.chunks[i]["rows"], self.model.cfg.d_model, self.reading.dtype)

    def _write_shards(
        self, i: int, chunk: Chunk, sites: Sequence[Site]
    ) -> dict[str, dict[str, Any]]:
        """Fills files of their final size in place, and names them as shards once they are full."""
        shards = {site: self._shard(site, i) for site in sites}
        building = {site: shard.named(".building") for site, shard in shards.items()}
        _reserve(list(building.values()))
        for shard in building.values():
            for name, values in chunk.where().items():
                shard.mapped(name, write=True).copy_(values)
        acts = {site: shard.mapped("acts", write=True) for site, shard in building.items()}
        norms = read_chunk(self.model, chunk, acts)
        written = {}
        for site, shard in building.items():
            written[site.name] = {"norm_sum": norms[site], "sha256": file_sha256(shard.path)}
            shard.path.replace(shards[site].path)
        return written

    # Ending

    def _put_in_place(self, site: Site) -> None:
        """Moves a site's folder; what stood in its place goes with this one.

        Ended anywhere in between, it can be called again.
        """
        building, place = self.folder / site.name, self.out / site.name
        replaced = self.folder / "replaced" / site.name
        card = self._card(site)
        for path in building.iterdir():
            if path.name not in card.shards:  # of runs that were killed
                path.unlink()
        write_json(building / "card.json", asdict(card))
        mark_replaceable(building)
        require_replaceable(place)
        if place.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            replaced.parent.mkdir(exist_ok=True)
            place.replace(replaced)
        building.replace(place)

    def _delete(self) -> None:
        """Deletes the folder, and last the list: so long, the next run knows what is done."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self.log:
                path.unlink()
        self.log.unlink()
        self.folder.rmdir()

    def _card(self, site: Site) -> ActivationsCard:
        rows = sum(chunk["rows"] for chunk in self.chunks)
        written = [chunk["shards"][site.name] for chunk in self.chunks]
        names = [self._shard(site, i).path.name for i in range(len(self.chunks))]
        return ActivationsCard(
            site=site.name,
            model_sha256=self.made_from["model_sha256"],
            model_name=model_name(self.model),
            tokenizer_sha256=self.made_from["tokenizer_sha256"],
            d_model=self.model.cfg.d_model,
            dtype=self.reading.dtype,
            documents=self.chunks[-1]["documents"],
            tokens=rows,
            mean_norm=sum(shard["norm_sum"] for shard in written) / max(1, rows),
            special_tokens="dropped" if self.reading.special_tokens == "drop" else "kept",
            context_size=self.reading.context_size,
            processing=f"{type(self.model).__name__}, {self.model.cfg.normalization_type}",
            versions=self.made_from["versions"],
            shards={
                name: {"rows": chunk["rows"], "sha256": shard["sha256"]}
                for name, chunk, shard in zip(names, self.chunks, written, strict=True)
            },
        )


def _reserve(shards: Sequence[Shard]) -> None:
    """Takes the room of all on the disk, or of none."""
    try:
        for shard in shards:
            with _disk_errors(shard.path):
                shard.reserve()
    except DataError:
        for shard in shards:
            with suppress(OSError):
                shard.path.unlink()
        raise


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); the shards before it are kept: mend "
            "that, or free some room, and run the same harvest again"
        ) from error
