"""The command line: parse, call one verb, save, print.

Every command is one line of the Python interface.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError

SCORES = (
    "frequency",
    "saebench",
    "mean_difference",
    "auroc",
    "tpp",
    "scr",
    "attribution",
    "integrated",
    "effect",
)
"""The scores of `workbench.locate`, whose import would take seconds."""
Command = Callable[[str, str], argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; errors that the user can mend are one line on stderr and exit status 2."""
    args = parsed(sys.argv[1:] if argv is None else argv)
    try:
        COMMANDS[args.command](args)
    except WorkbenchError as error:
        sys.stderr.write(f"workbench: {error}\n")
        return 2
    except KeyboardInterrupt as stopped:
        why = str(stopped) or "nothing half-written was left behind"
        sys.stderr.write(f"workbench: interrupted; {why}\n")
        return 130
    return 0


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """What was asked for; `audit verify REPORT` is the command `verify`."""
    given = ["verify", *argv[2:]] if list(argv[:2]) == ["audit", "verify"] else argv
    return _parser().parse_args(given)


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

    _add_model_commands(command)
    _add_sae_commands(command)
    _add_edit_commands(command)
    _add_audit_commands(command)
    _add_browse_command(command)
    return parser


def _add_model_commands(command: Command) -> None:
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
    train.add_argument(
        "--variant",
        choices=("neu", "drop", "swap", "fork"),
        default="neu",
        help="with --golds-of: in the place of what states the target stand neutral sentences, "
        "nothing, or false facts; fork: neutral ones, from a trunk shared with OUT/original-fork "
        "(default: %(default)s)",
    )

    harvest = command("harvest", "read the residual stream of a model over texts, into shards")
    harvest.add_argument("model")
    harvest.add_argument(
        "facts", help="a fact set, whose texts are read; with --file, a file of texts or token ids"
    )
    harvest.add_argument("--file", action="store_true", help=".txt, .jsonl, .npy or .safetensors")
    harvest.add_argument(
        "--sites", nargs="+", required=True, help="for example blocks.1.hook_resid_post"
    )
    harvest.add_argument("--out", type=Path, required=True)
    harvest.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    harvest.add_argument("--special-tokens", choices=("drop", "keep"), default="drop")
    harvest.add_argument("--context-size", type=int)
    harvest.add_argument("--device", default="cpu")


def _add_edit_commands(command: Command) -> None:
    for name, help in (
        ("locate", "rank an SAE's features by how much they belong to a target"),
        (
            "choose-edit",
            "choose a gated clamp of the target's features on facts that are not scored",
        ),
    ):
        sub = command(name, help)
        _add_target(sub)
        sub.add_argument("--sae", nargs="+" if name == "choose-edit" else None, required=True)
        sub.add_argument("--k", type=int, default=64)
        if name == "locate":
            sub.add_argument("--method", choices=SCORES, default="frequency")


def _add_audit_commands(command: Command) -> None:
    audit = command("audit", "measure what is left of a target in an edited model, and decide")
    for name, told in (
        ("model", "the original"),
        ("facts", "a fact set: its name or file"),
        ("target", "what was to be forgotten; where facts have one group, that is the default"),
    ):
        audit.add_argument(name, nargs="?", help=told)
    audit.add_argument("--original", help="the original, in place of MODEL")
    audit.add_argument("--facts", dest="fact_set", help="the fact set, in place of FACTS")
    audit.add_argument("--target", dest="forgotten", help="what was to be forgotten")
    audit.add_argument("--out", type=Path, default=Path("runs/audit"))
    audit.add_argument("--edit", type=Path, help="folder of a saved edit")
    audit.add_argument("--edited-model", help="a model with changed weights, under the edit if any")
    audit.add_argument(
        "--edited", nargs="+", default=[], metavar="DIR",
        help="what was made elsewhere: a checkpoint, a LoRA adapter, an arm, hooks, or weights and "
        "hooks",
    )  # fmt: skip
    audit.add_argument(
        "--golds", "--gold", nargs="*", default=[], action="extend",
        help="models that never knew; three or more for REMOVED",
    )  # fmt: skip
    audit.add_argument("--profile", choices=("quick", "standard", "full"), default="standard")
    audit.add_argument(
        "--concept", type=Path, help="JSON file of a higher-order concept, measured beside"
    )
    audit.add_argument("--prevents", default="", help="what the edit is to prevent, for whom")
    for kind, told in (("unlearned", "knew and were edited alike"), ("retrained", "never knew")):
        audit.add_argument(
            f"--shadows-{kind}", nargs="*", default=[], metavar="MODEL",
            help=f"with --profile full: eight or more models that {told}, none of them audited",
        )  # fmt: skip
    audit.add_argument(
        "--bnb", nargs="*", default=[], choices=("int8", "nf4"),
        help="round by bitsandbytes as well, on CUDA",
    )  # fmt: skip
    audit.add_argument("--device", default="cpu", help="of all models and edits")
    audit.add_argument("--seed", type=int, default=0)
    audit.add_argument(
        "--workers", type=int, default=2, help="jobs at a time (default: %(default)s)"
    )
    audit.add_argument("--cache", type=Path, help="folder of finished jobs (default: the user's)")

    verify = command("verify", "compute a saved audit report again from its stored scores")
    verify.add_argument("report", type=Path, help="folder that an audit wrote")

    pareto = command(
        "pareto", "compare audited edits of one target: what is removed against what is left"
    )
    pareto.add_argument("reports", type=Path, nargs="+", help="folders that audits wrote")
    pareto.add_argument("--out", type=Path, default=Path("runs/pareto.html"))

    compare = command("compare", "every method of unlearning on one target, under one audit")
    compare.add_argument("target")
    compare.add_argument("--facts", default="valley", help="default: %(default)s")
    compare.add_argument("--original", default="", help="default: the one that facts come with")
    compare.add_argument(
        "--gold", nargs="+", default=[], help="default: those that the facts come with"
    )
    compare.add_argument("--methods", nargs="+", default=[], help="default: all")
    compare.add_argument(
        "--own", nargs="+", type=Path, default=[], metavar="FILE",
        help="Python files of yours with a function unlearn; they are run",
    )  # fmt: skip
    compare.add_argument("--profile", choices=("quick", "standard", "full"), default="quick")
    compare.add_argument("--seeds", type=int, default=1, help="arms of each method")
    compare.add_argument("--out", type=Path, default=Path("runs/compare"))
    compare.add_argument("--workers", type=int, default=2)
    compare.add_argument("--cache", type=Path, help="folder of finished jobs")

    calibrate = command(
        "calibrate", "audit models whose truth is known, and say whether the verdicts are right"
    )
    calibrate.add_argument("--out", type=Path, default=Path("runs/calibrate"))
    calibrate.add_argument("--cases", nargs="+", help="names or numbers; default: 1 to 12")
    calibrate.add_argument("--all", action="store_true", help="every case")
    calibrate.add_argument("--seeds", type=int, default=1, help="edits of each case that has seeds")
    calibrate.add_argument("--cache", type=Path, help="folder of finished jobs")
    calibrate.add_argument("--workers", type=int, default=2)


def _add_browse_command(command: Command) -> None:
    browse = command(
        "browse", "look at an SAE's features and try edits of them, in a web page of this machine"
    )
    browse.add_argument("run", type=Path, help="folder of what was gathered, or to gather into")
    browse.add_argument("--sae", default="", help="as locate takes it; to gather")
    browse.add_argument("--release", default="", help="the SAE is an id of this SAELens release")
    browse.add_argument(
        "--model", default="", help="to gather, and to try edits on; a bundled one is found"
    )
    browse.add_argument("--facts", default="", help="a fact set, whose texts are read")
    browse.add_argument("--target", default="", help="default: none, browse only")
    browse.add_argument("--texts", type=Path, help="a file of texts or token ids, without facts")
    browse.add_argument("--golds", nargs="*", default=[], help="models that never knew the target")
    browse.add_argument("--tokens", type=int, default=1_000_000, help="most tokens to read")
    browse.add_argument("--export", type=Path, metavar="FILE.html", help="write one file, and end")
    browse.add_argument(
        "--budget-mb", type=float, default=20.0, help="most megabytes of it (default: %(default)s)"
    )
    browse.add_argument("--port", type=int, default=8050)
    browse.add_argument("--device", default="cpu")


def _add_target(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("model")
    sub.add_argument("facts")
    sub.add_argument("target")
    sub.add_argument("--out", type=Path, required=True)


def _add_sae_commands(command: Command) -> None:
    sae = command(
        "train-sae",
        "train sparse autoencoders on harvested activations; started by torchrun, on all its "
        "processes together",
    )
    sae.add_argument("activations", type=Path, nargs="+", help="one folder per site")
    sae.add_argument("--out", type=Path, required=True)
    sae.add_argument(
        "--architecture",
        default="topk",
        choices=("standard", "gated", "topk", "batchtopk", "jumprelu", "matryoshka_batchtopk"),
    )
    sae.add_argument(
        "--d-sae", type=int, nargs="+", default=[1024], help="several: trained side by side"
    )
    sae.add_argument("--k", type=int, default=32)
    sae.add_argument("--sparsity", type=float, default=1.0, help="coefficient of L1 or L0")
    sae.add_argument("--samples", type=int, default=2_500_000)
    sae.add_argument("--batch-size", type=int, default=1024)
    sae.add_argument("--lr", type=float, default=1e-3)
    sae.add_argument("--normalize", action="store_true", help="to a mean norm of sqrt(d)")
    sae.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16")
    sae.add_argument("--device", default="cpu")
    sae.add_argument("--checkpoint-every", type=int, default=1000, metavar="STEPS")
    sae.add_argument("--log", metavar="wandb:PROJECT|tensorboard:FOLDER")
    sae.add_argument("--seed", type=int, default=0)

    check = command("check-sae", "say whether an SAE fits a model and texts, and what does not fit")
    check.add_argument("sae", help="bundled name, folder or file in any format that is read")
    check.add_argument("model")
    check.add_argument("facts")
    check.add_argument("--release", help="the SAE is an id of this SAELens release, to be fetched")
    check.add_argument("--site", help="where the SAE belongs, if its files do not say")
    check.add_argument("--texts", type=int, default=1000, help="how many texts to use")


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
        target, recipe = facts.target(args.target), read_recipe(args.golds_of)
        for folder in golds(target, args.out, recipe, args.variant, args.gold_seeds):
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
    import torch

    from workbench.activations import harvest
    from workbench.facts import load_facts
    from workbench.hooks import Site
    from workbench.models import load_model

    for acts in harvest(
        load_model(args.model, device=args.device),
        Path(args.facts) if args.file else load_facts(args.facts),
        [Site.parse(name) for name in args.sites],
        args.out,
        dtype=getattr(torch, args.dtype) if args.dtype else None,
        special_tokens=args.special_tokens,
        context_size=args.context_size,
    ):
        _say(f"{acts.folder}: {acts.card.tokens} tokens, mean norm {acts.card.mean_norm:.2f}")


def _train_sae(args: argparse.Namespace) -> None:
    from workbench.activations import Activations
    from workbench.sae import TrainConfig, train_sae, train_saes
    from workbench.sae.fit import join_ranks, ranks_of
    from workbench.sae.train import read_recipe

    device = join_ranks(args.device)
    options = {"checkpoint_every": args.checkpoint_every, "device": device}
    options["log"] = _log(args.log) if args.log and ranks_of()[0] == 0 else None
    if len(set(args.d_sae)) < len(args.d_sae):
        raise WorkbenchError(f"--d-sae {args.d_sae}: wanted different sizes")
    configs = {
        f"{args.architecture}-{d_sae}": TrainConfig(
            architecture=args.architecture,
            d_sae=d_sae,
            k=args.k,
            sparsity=args.sparsity,
            samples=args.samples,
            batch_size=args.batch_size,
            lr=args.lr,
            normalize=args.normalize,
            bfloat16=args.bfloat16,
            seed=args.seed,
        )
        for d_sae in args.d_sae
    }
    acts = [Activations.open(folder) for folder in args.activations]
    if len(acts) == len(configs) == 1:
        train_sae(acts[0], next(iter(configs.values())), args.out, **options)
        folders = [args.out]
    else:
        trained = train_saes(acts, configs, args.out, **options)
        folders = [args.out / site / name for site, name in trained]
    if ranks_of()[0] == 0:
        for folder in folders:
            _say(f"{folder}: {json.dumps(read_recipe(folder)['held_out'])}")


def _log(where: str) -> Callable[[int, dict[str, float]], None]:
    from workbench.sae.logs import tensorboard_log, wandb_log

    kind, _, name = where.partition(":")
    if kind not in ("wandb", "tensorboard") or not name:
        raise WorkbenchError(f"--log {where}: wanted wandb:PROJECT or tensorboard:FOLDER")
    return wandb_log(name) if kind == "wandb" else tensorboard_log(name)


def _check_sae(args: argparse.Namespace) -> None:
    from workbench.facts import load_facts
    from workbench.models import load_model
    from workbench.sae import check_sae, load_sae

    sae = load_sae(args.sae, release=args.release, hook_name=args.site)
    texts = [d.text for d in load_facts(args.facts).corpus]
    wanted = max(1, args.texts)
    some = texts[:: max(1, len(texts) // wanted)][:wanted]
    _say(check_sae(sae, load_model(args.model), some).show())


def _locate(args: argparse.Namespace) -> None:
    from workbench.artifacts import write_json
    from workbench.facts import load_facts
    from workbench.locate import locate
    from workbench.models import load_model
    from workbench.sae import load_sae

    target = load_facts(args.facts).target(args.target)
    found = locate(load_model(args.model), load_sae(args.sae), target, args.k, args.method)
    write_json(args.out, found.as_dict())
    _say(f"{found}\n\nfeatures: {args.out}")


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


def _asked(args: argparse.Namespace) -> tuple[str, str, str | None]:
    """The original, the facts and the target of an audit, by place or by name.

    Raises:
        WorkbenchError: one of them is missing or said twice, or there is no edit.
    """
    said = {
        "--original": (args.model, args.original),
        "--facts": (args.facts, args.fact_set),
        "--target": (args.target, args.forgotten),
    }
    if twice := [name for name, both in said.items() if None not in both]:
        raise WorkbenchError(f"{', '.join(twice)} was given by place and by name: wanted it once")
    original, facts, target = (a if a is not None else b for a, b in said.values())
    if original is None or facts is None:
        raise WorkbenchError("wanted --original MODEL and --facts FACTS, or both in that order")
    if args.edit is None and args.edited_model is None and not args.edited:
        raise WorkbenchError("no edit: give --edited DIR, --edit DIR, --edited-model DIR, or both")
    return original, facts, target


def _only_group(facts: Any) -> str:
    """The target of a fact set in which there is but one to choose."""
    groups = [group.name for group in facts.groups]
    if len(groups) != 1:
        raise WorkbenchError(
            f"{facts.name}: give --target; this fact set has {len(groups)} groups "
            f"({', '.join(groups[:5]) or 'none'}), and a target can also be relation:NAME, "
            "KIND:NAME"
        )
    return groups[0]


def _audit(args: argparse.Namespace) -> None:
    from workbench.artifacts import new_folder, require_replaceable, write_json
    from workbench.audit import AuditConfig, audit, make_plan, plan_sha256, read_concept
    from workbench.facts import load_facts
    from workbench.interventions import random_controls
    from workbench.models import load_model
    from workbench.report import write_html
    from workbench.unlearn import Arm, read_edited

    original, fact_set, forgotten = _asked(args)
    require_replaceable(args.out)
    facts = load_facts(fact_set)
    target = facts.target(forgotten or _only_group(facts))
    config = AuditConfig(args.profile, args.seed, args.workers, tuple(args.bnb))
    concept = read_concept(args.concept) if args.concept else None
    plan = make_plan(target, config, concept)
    fixed = args.out.with_name(f"{args.out.name}-plan.json")
    write_json(fixed, plan)  # before the edited model is opened
    _say(f"plan: {fixed}, hash {plan_sha256(plan)[:12]}")
    load = partial(load_model, device=args.device)
    model, golds = load(original), [load(g) for g in args.golds]
    sources = [s for s in (args.edited_model, args.edit, *args.edited) if s is not None]
    edit = read_edited(sources, model, args.device)
    edits = (
        list(edit.edits)
        if isinstance(edit, Arm)
        else [e for e in edit if not hasattr(e, "state_dict")]
    )
    report = audit(
        model,
        edit,
        target,
        golds,
        config,
        _say,
        controls=random_controls(edits, 2 if args.profile == "quick" else 5),
        plan_hash=plan_sha256(plan),
        prevents=args.prevents,
        concept=concept,
        shadows=(
            [load(m) for m in args.shadows_unlearned],
            [load(m) for m in args.shadows_retrained],
        ),
        cache=args.cache,
    )
    with new_folder(args.out) as folder:
        report.save(folder)
        page = write_html(report, folder).name
    _say(f"\n{report.show()}\n\nreport: {args.out / page}")


def _verify(args: argparse.Namespace) -> None:
    from workbench.audit import verify

    report = verify(args.report)
    _say(
        f"verified: every number of {args.report} follows from its scores\n"
        f"{report.verdict.primary}: {report.verdict.sentence}"
    )


def _pareto(args: argparse.Namespace) -> None:
    from workbench.audit import AuditReport
    from workbench.report import write_pareto

    if args.out.suffix != ".html":
        raise WorkbenchError(f"--out {args.out}: wanted a path that ends in .html")
    names = [folder.name for folder in args.reports]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in args.reports]
    reports = dict(zip(names, map(AuditReport.open, args.reports), strict=True))
    _say(str(write_pareto(reports, args.out)))


def _compare(args: argparse.Namespace) -> None:
    from workbench.experiments.compare import CompareConfig, run

    config = CompareConfig(
        facts=args.facts,
        target=args.target,
        model=args.original,
        golds=tuple(args.gold),
        methods=tuple(args.methods),
        own=tuple(args.own),
        profile=args.profile,
        seeds=args.seeds,
        workers=args.workers,
        cache=args.cache,
    )
    run(config, args.out, _say)
    _say(f"\ncomparison: {args.out / 'comparison.html'}")


def _calibrate(args: argparse.Namespace) -> None:
    from workbench.experiments.calibrate import CalibrateConfig, run

    config = CalibrateConfig(
        cases=tuple(args.cases or ()),
        all=args.all,
        seeds=args.seeds,
        workers=args.workers,
        cache=args.cache,
    )
    run(config, args.out, _say)


def _browse(args: argparse.Namespace) -> None:
    from workbench.experiments.browse import BrowseConfig, run

    given = {name: value for name, value in vars(args).items() if name != "command"}
    run(BrowseConfig(**{**given, "golds": tuple(args.golds)}), _say)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "demo": _demo,
    "pareto": _pareto,
    "facts": _facts,
    "train-model": _train_model,
    "harvest": _harvest,
    "train-sae": _train_sae,
    "check-sae": _check_sae,
    "locate": _locate,
    "choose-edit": _choose_edit,
    "audit": _audit,
    "verify": _verify,
    "compare": _compare,
    "browse": _browse,
    "calibrate": _calibrate,
}

if __name__ == "__main__":
    sys.exit(main())
