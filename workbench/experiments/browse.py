"""Opening the feature browser on a run: gather what it shows if need be, then serve or export."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.dashboards import Bench, DashboardConfig, Dashboards, make_dashboards
from workbench.errors import DataError, EditError, SAEError
from workbench.facts import load_facts
from workbench.models import load_model
from workbench.models.load import bundled_models
from workbench.report.browser.export import export_browser
from workbench.report.browser.serve import Names, serve
from workbench.sae.load import load_sae

Say = Callable[[str], None]


@dataclass(frozen=True)
class BrowseConfig:
    """What is browsed.

    Attributes:
        run: folder of gathered dashboards; made if it is not there and `sae` and `model` are given.
        sae: as `load_sae` takes it, with `release` from SAELens' registry.
        model, golds: as `load_model` takes them; by default those of a bundled world.
        texts: a file of texts or token ids, in place of the texts of `facts`.
        export: a file to write in place of serving.
        budget_mb: most megabytes of that file.
    """

    run: Path
    sae: str = ""
    release: str = ""
    model: str = ""
    facts: str = ""
    target: str = ""
    texts: Path | None = None
    golds: tuple[str, ...] = ()
    tokens: int = 1_000_000
    export: Path | None = None
    budget_mb: float = 20.0
    port: int = 8050
    device: str = "cpu"


def run(config: BrowseConfig, say: Say = lambda line: None) -> None:
    """Gathers, then serves on this machine alone until it is interrupted, or writes one file.

    A run's card may come from elsewhere: the model that it names is opened only if it is a bundled
    one, or if it is given.
    """
    if not (config.run / "card.json").is_file():
        _gather(config, say)
    dashboards = Dashboards(config.run)
    if config.export is not None:
        say(str(export_browser(dashboards, config.export, config.budget_mb)))
        return
    names = _names(config, dashboards)
    serve(dashboards, _bench(config, dashboards, names, say), names, config.port, say)


def _gather(config: BrowseConfig, say: Say) -> None:
    if not (config.sae and config.model):
        raise DataError(
            f"{config.run}: holds no dashboards; give --sae and --model, and --facts and --target "
            "or --texts, to gather them there"
        )
    if bool(config.facts) == bool(config.texts):
        raise DataError("give either --facts (with --target, to see effects) or --texts to read")
    model = load_model(config.model, device=config.device)
    sae = load_sae(config.sae, config.device, release=config.release or None)
    facts = load_facts(config.facts) if config.facts else None
    target = facts.target(config.target) if facts and config.target else None
    texts: Any = config.texts if facts is None else (None if target else facts)
    say(f"gathering what {sae.cfg.d_sae} features do, into {config.run}")
    make_dashboards(sae, model, target, config.run, texts, DashboardConfig(config.tokens))


def _names(config: BrowseConfig, dashboards: Dashboards) -> Names | None:
    card = dashboards.card
    model = config.model or (card["model"] if card["model"] in bundled_models() else "")
    if not model:
        return None
    facts, target = config.facts or card["facts"] or "", config.target or card["target"] or ""
    golds = config.golds
    if not golds and model in bundled_models() and facts == model.split("/")[0]:
        golds = tuple(name for name in bundled_models() if name.startswith(f"{facts}/gold-"))
    return Names(model, facts, target, golds)


def _bench(
    config: BrowseConfig, dashboards: Dashboards, names: Names | None, say: Say
) -> Bench | None:
    """The model on which edits are tried, or nothing and the reason said."""
    if names is None:
        say("edits cannot be tried: the run's model is not a bundled one, give it with --model")
        return None
    model = load_model(names.model, device=config.device)
    sae = load_sae(dashboards.folder / "sae", config.device)
    target = load_facts(names.facts).target(names.target) if names.target else None
    golds = [load_model(name, device=config.device) for name in names.golds[:1]]
    try:
        return Bench(sae, model, target, golds, dashboards)
    except (EditError, SAEError) as error:
        say(f"edits cannot be tried: {error}")
        return None
