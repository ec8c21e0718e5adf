"""``fastdhm compare``: flags become the runs of a comparison, or the go-ahead for one that is there."""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

from fastdhm.cli.parser import HELP, Parser, asked
from fastdhm.cli.train import ORDER, recipe_for
from fastdhm.config import TrainConfig
from fastdhm.errors import UserError, unknown
from fastdhm.system.paths import expanded, short_name
from fastdhm.system.typed_yaml import read_yaml

OWN = (
    "out", "resume", "methods", "variants", "seeds", "table", "rows", "reference", "score", "confidence", "dry_run",
    "report_only", "only", "jobs", "slurm", "slurm_args",
)  # fmt: skip
LAYING_OUT = ("methods", "variants", "table", "rows")


EXAMPLES = """\
Examples:
  # three methods, three seeds each
  fastdhm compare --dataset cifar100 --arch resnet32 --epochs 20 --out runs/first-comparison

  # the same method in two ways
  fastdhm compare --dataset synthetic --methods dhm,one-way=dhm:direction=top-down --seeds 0,4

  # a table of the paper, shorter
  fastdhm compare --table 1 --epochs 16

  # a run on each GPU
  fastdhm compare --dataset cifar100 --seeds 5 --jobs auto

  # go on with what was stopped
  fastdhm compare --resume runs/first-comparison
"""


def _parser() -> Parser:
    parser = Parser(
        "compare",
        "Train several methods with several seeds, and compare them: mean and spread of every branch, differences "
        "paired by seed with a confidence interval, curves, error against training time. Stop it at any moment and "
        "call it again: finished runs are kept, and one that was cut short goes on bit for bit. A flag of `fastdhm "
        f"train` sets a value of all runs. {ORDER}",
        usage="fastdhm compare [--FLAG VALUE ...]",
        epilog=EXAMPLES,
    )

    parser.flag("--methods", "Methods, such as dsl,dhm:lr=0.05. (default: baseline,dsl,dhm)", metavar="METHOD,...")
    parser.flag("--variants", "YAML file of methods: for each NAME its values.", metavar="FILE")
    parser.flag("--table", "The paper's 1, 2, 3, 4, 5, directions, corrupt, dropout or bernoulli.", metavar="TABLE")
    parser.flag("--rows", "Rows of the table. (default: all)", metavar="ROW,...")
    parser.flag("--seeds", "How many seeds, or which. (default: 3; for a table, the paper's)", metavar="N|N,...")
    parser.flag("--reference", "What the others are compared with. (default: baseline)", metavar="METHOD")
    parser.flag("--score", "Epoch of a run that counts: last or best; auto: as --keep.", default="auto", metavar="NAME")
    parser.flag("--confidence", "Confidence of the intervals.", float, 0.95, metavar="X")
    parser.flag("--out", "Folder of the comparison. (default: a new one under runs/)", metavar="FOLDER")
    parser.flag("--resume", "Go on with the comparison in this folder.", metavar="FOLDER")
    parser.flag("--jobs", "Runs at once, each on its own GPU or share of the cores; or auto. (default: 1)", metavar="N")
    parser.flag("--slurm", "A SLURM job for each run, in this partition.", metavar="PARTITION")
    parser.flag("--slurm-args", "Options of sbatch: time=8:00:00,cpus-per-task=8,mem=32G.", metavar="NAME=VALUE,...")
    parser.flag("--only", "With --resume: train only these runs, such as dhm-seed0.", metavar="RUN,...")
    parser.switch("--dry_run", "Print the runs and how far each is; train nothing.")
    parser.switch("--report_only", "Write the results of finished runs; train nothing.")
    parser.add_run_arguments(skip=("run_dir", "seed", "method"))
    return parser


def run(argv: list[str]) -> int:
    """``fastdhm compare``; returns the exit status."""
    parser = _parser()
    asks, argv = asked(argv)
    if any(word.partition("=")[0] == "--seed" for word in argv):
        raise UserError("seed is given: a comparison has several, as in --seeds 3 (seeds 0, 1, 2) or --seeds [3]")
    given = parser.given(argv)
    if asks:
        parser.show(asks, recipe_for(given) | given if set(asks) & set(HELP) else given)
    own = {name: given.pop(name) for name in OWN if given.get(name) is not None}
    from fastdhm.compare.jobs import split_names
    from fastdhm.compare.runner import HowToReport, compare, dry_run, one_by_one, ready, report
    from fastdhm.compare.side_by_side import PARENT, how_many, side_by_side
    from fastdhm.compare.slurm import on_slurm
    from fastdhm.engine.device import use_processors
    from fastdhm.system.console import Console, paste
    from fastdhm.system.place import place
    from fastdhm.system.signals import stop_with_parent

    if PARENT in os.environ:
        stop_with_parent(int(os.environ[PARENT]))
    if place() is not None:
        raise UserError("compare was started in several processes: start it once; --jobs N makes runs side by side")
    how = HowToReport(**{name: own[name] for name in ("score", "confidence") if name in own})
    if "resume" in own and "out" in own:
        raise UserError(f"resume and out are given: --resume goes on in {own['resume']}; leave out --out")
    there = own.get("resume") or (own.get("out") if own.get("report_only") else None)
    comparison = _there(expanded(there), own, given) if there else _asked_for(parser, own, given)
    if not there:
        comparison = dataclasses.replace(comparison, command=paste("fastdhm", "compare", *argv))
    only = split_names(own["only"]) if "only" in own else ()
    if only and "resume" not in own:
        raise UserError("only is given without resume: name the folder of the runs with --resume")
    folder = expanded(there or own.get("out") or Path("runs") / _folder_name(comparison))
    if own.get("report_only"):
        return report(comparison, folder, how, Console())
    slurm = _slurm(own)
    comparison, jobs = ready(comparison, folder, only, elsewhere=slurm is not None)
    at_once = how_many(own.get("jobs", "1"), jobs) if slurm is None else slurm.at_once or len(jobs)
    if own.get("dry_run"):
        dry_run(comparison, jobs, folder, Console(), at_once)
        return 0
    use_processors()
    if slurm is not None:
        make = partial(on_slurm, slurm=slurm, only=only)
    elif at_once > 1:
        make = partial(side_by_side, at_once=at_once, only=only)
    else:
        make = partial(one_by_one, only=only)
    return compare(comparison, jobs, folder, how, Console(), make, only, elsewhere=slurm is not None)


def _slurm(own: dict[str, Any]):
    """Where jobs are submitted; None if they are not."""
    from fastdhm.compare.slurm import Slurm, check

    if "slurm" not in own:
        if "slurm_args" in own:
            raise UserError("slurm_args is given without slurm: name a partition with --slurm")
        return None
    jobs = own.get("jobs", "auto")
    if jobs != "auto" and not (jobs.isdecimal() and int(jobs)):
        raise UserError(f"jobs is {jobs}: must be a number of jobs at once, or auto for all")
    slurm = Slurm(own["slurm"], own.get("slurm_args", ""), None if jobs == "auto" else int(jobs))
    check(slurm)
    return slurm


def _there(folder: Path, own: dict[str, Any], given: dict[str, Any]):
    """The comparison in ``folder``, with more seeds if asked for, and with what a resumed run may set anew."""
    from fastdhm.compare.arms import fitting, make_config, parse_seeds
    from fastdhm.compare.directory import read_settings
    from fastdhm.engine.saved.checkpoint import HOW_IT_RUNS, moved

    comparison = read_settings(folder)
    there = {name: given[name] for name in ("dataset",) if name in given}  # where the images lie now
    free = HOW_IT_RUNS + moved(comparison.arms[0].config, dataclasses.replace(comparison.arms[0].config, **there))
    fixed = [name for name in (*given, *own) if name in LAYING_OUT or (name in given and name not in free)]
    if fixed:
        raise UserError(
            f"--resume keeps the runs in {folder} as they are, and --{fixed[0].replace('_', '-')} would change them: "
            "leave it out, or start a new comparison"
        )
    configs = [make_config(dataclasses.asdict(a.config) | fitting(a.config.method, given)) for a in comparison.arms]
    arms = tuple(dataclasses.replace(arm, config=c) for arm, c in zip(comparison.arms, configs, strict=True))
    seeds = parse_seeds(own["seeds"]) if "seeds" in own else comparison.seeds
    reference = own.get("reference", comparison.reference)
    known = {name for arm in arms for name in (arm.name, arm.label, arm.config.method)}
    if reference is not None and reference not in known:
        raise unknown("reference", reference, dict.fromkeys(arm.label for arm in arms))
    return dataclasses.replace(comparison, arms=arms, seeds=seeds, reference=reference)


def _asked_for(parser: Parser, own: dict[str, Any], given: dict[str, Any]):
    """The comparison that the flags ask for."""
    from fastdhm.compare.arms import parse_seeds
    from fastdhm.compare.plan import compare_methods, reproduce_table

    seeds = parse_seeds(own["seeds"]) if "seeds" in own else None
    if "table" in own:
        other = [name for name in ("methods", "variants", "reference") if name in own]
        if other:
            raise UserError(f"{other[0]} and table are given: a table has its own methods; leave out one of the two")
        rows = tuple(row.strip() for row in own.get("rows", "").split(",") if row.strip())
        return reproduce_table(own["table"], given, seeds, rows)
    if "rows" in own:
        raise UserError("rows is given without table: add --table, or leave out --rows")
    if "variants" in own and "methods" in own:
        raise UserError("methods and variants are given: leave out one of the two")
    variants = _from_file(parser, expanded(own["variants"])) if "variants" in own else _from_text(parser, own)
    return compare_methods(variants, seeds or (0, 1, 2), given, own.get("reference"))


def _from_text(parser: Parser, own: dict[str, Any]):
    from fastdhm.compare.arms import Variant, split_methods

    variants = []
    for variant in split_methods(own.get("methods", "baseline,dsl,dhm")):
        flags = [word for name, text in variant.changes.items() for word in (f"--{name}", _as_list(name, text))]
        variants.append(Variant(variant.name, variant.method, parser.given(flags)))
    return variants


def _as_list(name: str, text: str) -> str:
    """``B1+B2`` as the list that a value with several parts is."""
    several = any("tuple" in str(field.type) for field in dataclasses.fields(TrainConfig) if field.name == name)
    return f"[{text.replace('+', ',')}]" if several and not text.startswith("[") else text


def _from_file(parser: Parser, path: Path):
    from fastdhm.compare.arms import Variant, check_variants

    rule = "a YAML file with the values of each name, such as `deep: {method: dhm, branches: [B1]}`"
    values = read_yaml(path)
    if not all(isinstance(v, dict) and "method" in v for v in values.values()):
        raise UserError(f"variants is {path}: must be {rule}")
    variants = []
    for name, changes in values.items():
        method = str(changes.pop("method"))
        flags = [word for key, value in changes.items() for word in (f"--{key}", _as_text(value))]
        variants.append(Variant(str(name), method, parser.given(flags)))
    check_variants(variants)
    return variants


def _as_text(value: Any) -> str:
    """A value of a file as it would stand behind its flag."""
    return value if isinstance(value, str) else json.dumps(value)


def _folder_name(comparison) -> str:
    """The same for the same arguments, so that calling again goes on."""
    from fastdhm.compare.plan import dataset_name

    if comparison.table:
        return f"compare-table-{comparison.table}"
    config = comparison.arms[0].config
    return f"compare-{short_name(dataset_name(config.dataset))}-{config.arch}".replace("/", "-").replace(":", "-")
