"""How surely each endpoint tells models that know from models that never did, as measured."""

import json
from functools import cache
from pathlib import Path

LEAST_AUC = 0.95
"""Below this an endpoint decides nothing."""
SHIPPED = Path(__file__).parent / "metacheck.json"


@cache
def faithfulness() -> dict[str, float]:
    """AUC by endpoint, of the table that `workbench calibrate --all` measured last.

    An endpoint that is not in it was not measured, and is taken at its own controls' word.
    """
    if not SHIPPED.is_file():
        return {}
    found = json.loads(SHIPPED.read_text())["endpoints"]
    return {e["endpoint"]: e["faithfulness"] for e in found if e["faithfulness"] is not None}
