"""What an audit returns: tidy rows, gates, a verdict, and where all of it came from."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from workbench.artifacts import write_json
from workbench.errors import DataError

SCHEMA = "audit/0"
BATTERY_VERSION = "0.1"

Primary = Literal["NOT_REMOVED", "SUPPRESSED", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Measurement:
    """One number: what it is, whose it is, its interval, and how much stands behind it.

    Attributes:
        endpoint: `recall`, `probe`, `relearn`, `relearn_area`, `rho`, `objective`, `weights`.
        role: `original`, `edited`, `gold-0` and so on, `gold` (mean of the golds), `control`.
        view: `hooks_on` or `hooks_off` for the edited model, else empty.
        subset: which facts: a fold (`V`, `R_te`), a neighbour set, `kind:<kind>`.
        detail: the template family, the position, or whatever else tells rows of one endpoint
            apart.
        x: layer of a probe, step of a relearning curve; 0 where there is none.
        low, high: 95 % interval under resampling of entities (and of golds).
    """

    endpoint: str
    role: str
    view: str
    subset: str
    detail: str
    x: float
    value: float
    low: float
    high: float
    n: int
    n_entities: int
    seed: int


@dataclass(frozen=True)
class Gate:
    """A condition without which no endpoint can be used: a value, a limit and a sentence."""

    id: str
    passed: bool
    value: float
    limit: float
    note: str


@dataclass(frozen=True)
class Endpoint:
    """How much of the original's advantage over the golds is there under one kind of access.

    Attributes:
        rho: (E - G) / (O - G), with its 95 % interval.
        recovered: rho is at least 0.10 and above zero after Holm's adjustment over all endpoints.
        valid: the same measurement finds the knowledge in O and not in the golds; only valid
            endpoints decide.
    """

    id: str
    access: str
    view: str
    original: float
    edited: float
    gold: float
    gold_each: tuple[float, ...]
    rho: float
    low: float
    high: float
    p_holm: float
    recovered: bool
    valid: bool
    why_invalid: str
    n: int
    n_entities: int


@dataclass(frozen=True)
class Verdict:
    """What an audit concludes: one word, one sentence, and the reasons for them."""

    primary: Primary
    sentence: str
    reasons: tuple[str, ...]
    flags: tuple[str, ...]
    lowest_access_recovered: str


@dataclass(frozen=True)
class AuditReport:
    """Everything an audit found; saves to and reloads from a folder without loss."""

    rows: tuple[Measurement, ...]
    endpoints: tuple[Endpoint, ...]
    gates: tuple[Gate, ...]
    verdict: Verdict
    limits: tuple[str, ...]
    provenance: dict[str, Any]

    def frame(self) -> Any:
        """The rows as a pandas DataFrame."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def save(self, folder: Path | str) -> Path:
        """Writes `rows.parquet` and `report.json` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.frame().to_parquet(folder / "rows.parquet", index=False)
        content = _without_nan(asdict(self))
        del content["rows"]
        write_json(
            folder / "report.json",
            {"schema": SCHEMA, "battery_version": BATTERY_VERSION, **content},
        )
        return folder

    @classmethod
    def open(cls, folder: Path | str) -> "AuditReport":
        """Reads what `save` wrote.

        Raises:
            DataError: the folder holds no report of this schema.
        """
        import pandas as pd

        folder = Path(folder)
        try:
            content = json.loads((folder / "report.json").read_text())
            rows = pd.read_parquet(folder / "rows.parquet").to_dict("records")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{folder}: no readable report.json and rows.parquet ({error})"
            ) from error
        if content.get("schema") != SCHEMA:
            raise DataError(
                f"{folder / 'report.json'}: schema {content.get('schema')!r}, wanted {SCHEMA!r}"
            )
        endpoints = (
            Endpoint(**{**e, "gold_each": tuple(e["gold_each"])}) for e in content["endpoints"]
        )
        verdict = content["verdict"]
        return cls(
            rows=tuple(Measurement(**{str(k): v for k, v in row.items()}) for row in rows),
            endpoints=tuple(endpoints),
            gates=tuple(Gate(**_with_nan(gate)) for gate in content["gates"]),
            verdict=Verdict(
                **{
                    **verdict,
                    "reasons": tuple(verdict["reasons"]),
                    "flags": tuple(verdict["flags"]),
                }
            ),
            limits=tuple(content["limits"]),
            provenance=content["provenance"],
        )

    def show(self) -> str:
        """The endpoints as a table and the verdict as a sentence, for a terminal."""
        head = (
            f"{'what':<34}{'original':>10}{'edited':>10}{'gold':>8}"
            f"   {'rho, 95 % interval':<24}{'n':>6}"
        )
        lines = [head, "-" * len(head)]
        for e in self.endpoints:
            rho = f"{e.rho:5.2f}  [{e.low:5.2f}, {e.high:5.2f}]"
            name = f"{e.id} ({e.access}, {e.view.replace('_', ' ')})"
            lines.append(
                f"{name:<34}{e.original:>10.3f}{e.edited:>10.3f}{e.gold:>8.3f}   {rho:<24}{e.n:>6}"
            )
        return "\n".join([*lines, "", f"{self.verdict.primary}: {self.verdict.sentence}"])


def _without_nan(value: Any) -> Any:
    """The value with None for every number that could not be measured, since JSON has no NaN."""
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(gate: dict[str, Any]) -> dict[str, Any]:
    return {k: math.nan if v is None and k in ("value", "limit") else v for k, v in gate.items()}
