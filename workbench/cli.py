"""The command line: parse, call one verb, save, print.

Every command is one line of the Python interface.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from workbench.errors import WorkbenchError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; errors that the user can mend are one line on stderr and exit status 2."""
    args = _parser().parse_args(argv)
    try:
        COMMANDS[args.command](args)
    except WorkbenchError as error:
        sys.stderr.write(f"workbench: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("workbench: interrupted; nothing half-written was left behind\n")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench",
        description="Find the features of a concept, ablate them, and audit whether the knowledge "
        "is gone.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=help, description=help)

    demo = command("demo", "the whole line on the bundled world")
    demo.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder to write (default: %(default)s)"
    )

    facts = command("facts", "read a fact set, check its data contract, and print what it holds")
    facts.add_argument("facts", help="valley, a .jsonl file, or a CounterFact .json file")
    facts.add_argument("--target", help="also build this target and check its contract")
    facts.add_argument(
        "--name-overlap",
        type=float,
        help="generate the valley anew with this share of shared stems",
    )
    facts.add_argument("--out", type=Path, help="save the fact set as JSON Lines")

    train = command(
        "train-model",
        "train a small language model on a fact set, or golds that never knew a target",
    )
    train.add_argument("facts")
    train.add_argument(
        "--out", type=Path, required=True, help="folder of the model, or of the golds"
    )
    train.add_argument("--d-model", type=int, default=128)
    train.add_argument("--layers", type=int, default=4)
    train.add_argument("--epochs", type=int, default=14)
    train.add_argument("--batch-size", type=int, default=128)
    train.add_argument("--tokenizer", choices=("word", "byte_pair"), default="word")
    train.add_argument(
        "--forms", nargs="+", default=[], help="forms of text to train on; default: all"
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument(
        "--golds-of", type=Path, metavar="MODEL", help="train golds with this original's recipe"
    )
    train.add_argument("--target", help="with --golds-of: what the golds never see")
    train.add_argument("--gold-seeds", type=int, nargs="+", default=[0, 1, 2])

    harvest = command("harvest", "read the residual stream of a model over a fact set's texts")
    harvest.add_argument("model")
    harvest.add_argument("facts")
    harvest.add_argument(
        "--sites", nargs="+", required=True, help="for example blocks.1.hook_resid_post"
    )
    harvest.add_argument("--out", type=Path, required=True)

    sae = command("train-sae", "train a sparse autoencoder on harvested activations of one site")
    sae.add_argument("activations", type=Path)
    sae.add_argument("--out", type=Path, required=True)
    sae.add_argument("--d-sae", type=int, default=1024)
    sae.add_argument("--k", type=int, default=32)
    sae.add_argument("--samples", type=int, default=2_500_000)
    sae.add_argument("--batch-size", type=int, default=1024)
    sae.add_argument("--seed", type=int, default=0)

    for name, help in (
        ("locate", "rank an SAE's features by how much they belong to a target"),
        (
            "choose-edit",
            "choose a gated clamp of the target's features on facts that are not scored",
        ),
        ("audit", "measure what is left of a target in an edited model, and decide"),
    ):
        sub = command(name, help)
        sub.add_argument("model")
        sub.add_argument("facts")
        sub.add_argument("target")
        sub.add_argument("--out", type=Path, required=True)
        if name == "audit":
            sub.add_argument("--edit", type=Path, help="folder of a saved edit")
            sub.add_argument(
                "--edited-model", help="a model with changed weights in the place of an edit"
            )
            sub.add_argument(
                "--golds", nargs="+", required=True, help="three or more models that never knew"
            )
        else:
            sub.add_argument("--sae", nargs="+" if name == "choose-edit" else None, required=True)
            sub.add_argument("--k", type=int, default=64)
        if name == "locate":
            sub.add_argument("--method", choices=("frequency", "attribution"), default="frequency")
    return parser


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _demo(args: argparse.Namespace) -> None:
    from workbench.experiments.demo import DemoConfig, run

    report = run(DemoConfig(), args.out, _say)
    _say(f"\n{report.show()}\n\nreport: {args.out / 'report.html'}")


def _facts(args: argparse.Namespace) -> None:
    from workbench.facts import ValleyConfig, build_valley, check_contract, load_facts, save_facts

    if args.name_overlap is not None:
        if args.facts != "valley":
            raise WorkbenchError(
                f"--name-overlap generates the valley; it says nothing about {args.facts!r}"
            )
        facts = build_valley(ValleyConfig(name_overlap=args.name_overlap))
    else:
        facts = load_facts(args.facts)
    _say(
        f"{facts.name}: {len(facts.entities)} entities, {len(facts.facts)} facts, "
        f"{len(facts.corpus)} texts"
    )
    for note in facts.notes:
        _say(f"note: {note}")
    if args.target:
        target = facts.target(args.target)
        folds = ", ".join(f"{name} {len(members)}" for name, members in target.folds.items())
        _say(f"target {target.name}: {len(target.forget)} facts; entities by fold: {folds}")
        for c in check_contract(target):
            _say(
                f"{'pass' if c.passed else 'FAIL'}  {c.id}: {c.value:g} (limit {c.limit:g}) "
                f"{c.note}"
            )
    if args.out:
        save_facts(facts, args.out)


def _train_model(args: argparse.Namespace) -> None:
    from workbench.facts import load_facts
    from workbench.models import LMConfig, golds, read_recipe, train_lm

    facts = load_facts(args.facts)
    if args.golds_of:
        if not args.target:
            raise WorkbenchError("--golds-of wants --target: what the golds are never to see")
        for folder in golds(
            facts.target(args.target), args.out, read_recipe(args.golds_of), seeds=args.gold_seeds
        ):
            _say(str(folder))
        return
    config = LMConfig(
        d_model=args.d_model,
        n_layers=args.layers,
        epochs=args.epochs,
        batch_size=args.batch_size,
        tokenizer=args.tokenizer,
        forms=tuple(args.forms),
        seed=args.seed,
    )
    train_lm(facts, args.out, config)
    _say(
        f"{args.out}: recall on training templates "
        f"{read_recipe(args.out)['recall_train_templates']:.4f}"
    )


def _harvest(args: argparse.Namespace) -> None:
    from workbench.activations import harvest
    from workbench.facts import load_facts
    from workbench.hooks import Site
    from workbench.models import load_model

    sites = [Site.parse(name) for name in args.sites]
    for acts in harvest(load_model(args.model), load_facts(args.facts).corpus, sites, args.out):
        _say(f"{acts.folder}: {acts.card.tokens} tokens, mean norm {acts.card.mean_norm:.2f}")


def _train_sae(args: argparse.Namespace) -> None:
    from workbench.activations import Activations
    from workbench.sae import TrainConfig, train_sae
    from workbench.sae.train import read_recipe

    config = TrainConfig(
        d_sae=args.d_sae,
        k=args.k,
        samples=args.samples,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    train_sae(Activations.open(args.activations), config, args.out)
    _say(f"{args.out}: {json.dumps(read_recipe(args.out)['held_out'])}")


def _locate(args: argparse.Namespace) -> None:
    from workbench.artifacts import write_json
    from workbench.facts import load_facts
    from workbench.locate import locate
    from workbench.models import load_model
    from workbench.sae import load_sae

    target = load_facts(args.facts).target(args.target)
    found = locate(load_model(args.model), load_sae(args.sae), target, args.k, args.method)
    write_json(args.out, found.as_dict())
    _say(
        f"{len(found.features)} features at {found.site.name} by {found.method}; held-out score "
        f"{found.held_out.mean():.4f} against {found.held_out_random:.4f} for all others: "
        f"{args.out}"
    )


def _choose_edit(args: argparse.Namespace) -> None:
    from workbench.experiments.choose import ChooseConfig, choose_edit
    from workbench.facts import load_facts
    from workbench.interventions import save_edit
    from workbench.models import load_model
    from workbench.sae import load_sae

    target = load_facts(args.facts).target(args.target)
    saes = [load_sae(s) for s in args.sae]
    choice = choose_edit(load_model(args.model), saes, target, ChooseConfig(k=args.k), _say)
    save_edit(choice.edits, args.out)
    best = next(t for t in choice.trials if t.chosen)
    _say(
        f"{args.out}: {' and '.join(best.sites)}, {best.method}, dose {best.dose:g}; "
        f"S fold {best.forget:.3f}, lowest retained kind {best.retained:.3f}"
    )


def _audit(args: argparse.Namespace) -> None:
    from workbench.audit import audit
    from workbench.facts import load_facts
    from workbench.interventions import load_edit
    from workbench.models import load_model
    from workbench.report import write_html

    if (args.edit is None) == (args.edited_model is None):
        raise WorkbenchError("give either --edit or --edited-model")
    edit = load_edit(args.edit) if args.edit else load_model(args.edited_model)
    target = load_facts(args.facts).target(args.target)
    report = audit(
        load_model(args.model), edit, target, [load_model(g) for g in args.golds], say=_say
    )
    report.save(args.out)
    _say(f"\n{report.show()}\n\nreport: {write_html(report, args.out)}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo,
    "facts": _facts,
    "train-model": _train_model,
    "harvest": _harvest,
    "train-sae": _train_sae,
    "locate": _locate,
    "choose-edit": _choose_edit,
    "audit": _audit,
}

if __name__ == "__main__":
    sys.exit(main())
