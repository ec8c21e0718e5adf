"""What a person is told before a run: what it is going to do."""

import math

from rich.text import Text

from fastdhm import methods, models
from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.engine import distributed
from fastdhm.engine.compiling import when_compiled
from fastdhm.engine.device import describe_threads
from fastdhm.engine.fast.fuse import FusedForward
from fastdhm.engine.headless import logits_bytes
from fastdhm.engine.optim.by_name import is_schedule_free
from fastdhm.engine.optim.schedule import describe_falls, describe_images
from fastdhm.engine.run import Run
from fastdhm.engine.saved.judged import TEST_SETS, in_epochs, judged_images
from fastdhm.system.console import Console


def plan(run: Run, data: LoadedData, why_not_compiled: str) -> dict[str, str]:
    """What the run is going to do, for a person to read before it starts."""
    config = run.config
    images = describe_images(config.epochs, run.side, config.progressive)
    falls = describe_falls(config.schedule, config.milestones, config.epochs)
    grown = str(run.model.summary) if isinstance(run.model, models.AttachedModel) else ""
    lines = {
        "data": _data(run, data),
        "network": _network(run),
        "branches": grown,
        "images": images,
        "labels": run.labelling.describe(),
        "augment": _augmentation(config),
        "schedule": falls + "; --milestones sets others" * bool(falls),
        "method": _method(run),
        "loss": _loss(run),
        "teacher": run.teacher.told if run.teacher else "",
        "machine": _machine(run, why_not_compiled),
        "run": str(run.dir),
    }
    return {name: text for name, text in lines.items() if text}


def _data(run: Run, data: LoadedData) -> str:
    config = run.config
    train, val = f"{data.train.num_samples:,} training", f"{data.val.num_samples:,} validation images"
    left_out = data.train.num_samples % config.batch_size
    train += f" (each epoch leaves out {left_out:,} that fill no batch, others each time)" * bool(left_out)
    val += f" ({judged_images(config)})" * (config.dataset in TEST_SETS)
    corrupt = f", {config.corrupt_labels:.0%} of the labels drawn at random, {run.labelling.changed:,} of them wrong"
    said = f"{config.dataset}: {train} and {val}, {len(data.classes):,} classes, {config.loader} loader"
    return said + corrupt * (config.corrupt_labels > 0)


def _augmentation(config: TrainConfig) -> str:
    """What is done to images beside crops and flips; empty if nothing is."""
    words = [config.augment] if config.augment != "none" else []
    words += [f"colours {','.join(f'{x:g}' for x in config.color_jitter)}"] if any(config.color_jitter) else []
    words += [f"{config.random_grey:.0%} grey"] if config.random_grey else []
    words += [f"{config.random_erase:.0%} with a rectangle erased"] if config.random_erase else []
    if config.repeats > 1:
        words.append(f"each image {config.repeats} times, so that an epoch shows one in {config.repeats}")
    return ", ".join(words)


def _network(run: Run) -> str:
    config = run.config
    parts = zip(run.model.branch_names, (run.model.trunk, *run.model.branches.values()), strict=True)
    sizes = ", ".join(f"{name} {sum(p.numel() for p in part.parameters()):,}" for name, part in parts)
    begun = f"; from {config.weights} weights" if config.weights else ""
    begun += f" ({', '.join(run.begun)})" if run.begun else ""
    if config.freeze_epochs:
        begun += f", in the first {config.freeze_epochs} epochs only the new layers train"
    return f"{config.arch}, parameters: {sizes}{begun}"


def _method(run: Run) -> str:
    config, at = run.config, run.at
    rate = f", lr {config.peak_lr:g}"
    rate += f" ({config.lr:g} for {config.lr_batch_size} images)" if config.scale_lr else ""
    if config.warmup_epochs > config.epochs:
        rate += f", whose warm-up of {config.warmup_epochs:g} epochs the run ends before"
    rate += f", moving average of the weights {config.ema:g}" if config.ema else ""
    if config.accumulate > 1:
        rate += f", in {config.accumulate} parts of {config.batch_size // config.accumulate} images, each with batch "
        rate += "statistics of its own, which move the running ones"
    start = f", from epoch {at.epoch + 1}, batch {at.batch}" if at.step else ""
    cut = "cut after " * (run.total_steps < math.ceil(run.end * run.epoch_steps))
    steps = f"{config.epochs} epochs, {cut}{run.total_steps:,} steps of {config.batch_size} images"
    steps += "" if config.hours is None else f", as far as they fit into {config.hours:g} hours"
    steps += "" if config.patience is None else f", fewer if the error falls no lower for {config.patience}"
    return f"{method_name(config)}, {steps}{_optimizer(config)}{rate}{start}"


def _loss(run: Run) -> str:
    """How the loss of very many classes is computed; empty if there are fewer."""
    if run.headless is None and not run.why_logits:
        return ""
    classes, branches = len(run.classes), len(run.model.branch_names)
    gib = f"{logits_bytes(run.config, branches, classes, run.precision) / 2**30:.2g} GiB"
    if run.headless is None:
        return f"from all logits of a step at once, {gib}, as {run.why_logits}"
    of = f"{branches} classifiers" if branches > 1 else "the classifier"
    return f"with {of} of {classes:,} classes, a part of the logits at a time: all of them would take {gib}"


def _optimizer(config: TrainConfig) -> str:
    if config.optimizer == "sgd" and config.layer_decay == 1:
        return ""
    beside = f" ({config.optimizer_args})" * bool(config.optimizer_args)
    layers = f", each layer at {config.layer_decay:g} of the next one's rate" * (config.layer_decay < 1)
    free = ", whose average of the weights is validated and kept" * is_schedule_free(config.optimizer)
    return f", {config.optimizer}{beside}{free}{layers}"


def why_early(run: Run) -> str:
    """For a person: why a run ended before its epochs."""
    at, config = run.at, run.config
    if run.waited():
        lowest = f"its lowest error is of epoch {at.best_epoch + 1}"
        kept = "" if config.keep == "best" else "; the network kept is of the last epoch, see --keep"
        return f"ended after epoch {at.epoch}, as patience is {config.patience}: {lowest}{kept}"
    cut = " in the middle of its schedule" * (at.timed_out and run.now < run.end)
    return f"ended{cut} after {in_epochs(run.now)} of {config.epochs} epochs, as hours is {config.hours:g}"


def _machine(run: Run, why_not_compiled: str) -> str:
    config, compiled = run.config, when_compiled(run)
    words = [config.device, describe_threads(), config.precision, f"compile {config.compile}"]
    words[-1] += compiled or why_not_compiled
    if (processes := distributed.count()) > 1:
        norms = "over all processes" if config.sync_bn else "of each process"
        share = config.batch_size // processes
        words[0] = f"{processes} processes, each with {share} images of a batch, batch norms {norms}; {words[0]}"
    if isinstance(run.forward, FusedForward) and not compiled:
        words.append(run.forward.describe(run.model.branch_names[1:]))
    words += ["deterministic"] * config.deterministic
    words += ["activations computed again"] * config.activation_checkpointing
    return ", ".join(words)


def method_name(config: TrainConfig) -> str:
    """The method with what is unusual about it: ``dhm, top-down, bernoulli 0.5 every epoch``."""
    words = [config.method, *([f"{config.only_branch} alone"] if config.only_branch else [])]
    words += [config.direction] if config.direction != "both" else []
    for name in ("ce_weight", "mimic_weight", "temperature"):
        words += [f"{name} {getattr(config, name):g}"] if getattr(config, name) != 1 else []
    words += ["a teacher"] if config.teacher else []
    if config.sampler != "binary":
        prob = f" {config.keep_prob:g}" if config.sampler == "bernoulli" else ""
        words.append(f"{config.sampler}{prob} every {config.sample_every or methods.SAMPLERS[config.sampler]}")
    return ", ".join(words)


def print_plan(console: Console, lines: dict[str, str]) -> None:
    """A line for each, its name in bold."""
    for name, text in lines.items():
        console.print(Text.assemble((f"{name:<9}", "bold"), text))
