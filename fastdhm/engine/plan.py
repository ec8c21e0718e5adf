"""What a person is told before a run: what it is going to do."""

from rich.text import Text

from fastdhm import methods, models
from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.engine.compiling import when_compiled
from fastdhm.engine.device import describe_threads
from fastdhm.engine.fast.fuse import FusedForward
from fastdhm.engine.optim.schedule import describe_falls, describe_images
from fastdhm.engine.run import Run
from fastdhm.engine.saved.judged import TEST_SETS, judged_images
from fastdhm.system.console import Console


def plan(run: Run, data: LoadedData, why_not_compiled: str) -> dict[str, str]:
    """What the run is going to do, for a person to read before it starts."""
    config, at = run.config, run.at
    branches = dict(zip(run.model.branch_names, (run.model.trunk, *run.model.branches.values()), strict=True))
    sizes = ", ".join(f"{name} {sum(p.numel() for p in branch.parameters()):,}" for name, branch in branches.items())
    train, val = f"{data.train.num_samples:,} training", f"{data.val.num_samples:,} validation images"
    val += f" ({judged_images(config)})" * (config.dataset in TEST_SETS)
    steps = f"{config.epochs} epochs, {run.total_steps:,} steps of {config.batch_size} images"
    start = f", from epoch {at.epoch + 1}, batch {at.batch}" if at.step else ""
    corrupt = f", {config.corrupt_labels:.0%} of the labels drawn at random, {run.changed_labels:,} of them wrong"
    machine = [config.device, describe_threads(), config.precision]
    compiled = when_compiled(run)
    machine.append(f"compile {config.compile}{compiled or why_not_compiled}")
    if isinstance(run.forward, FusedForward) and not compiled:
        machine.append(run.forward.describe(run.model.branch_names[1:]))
    machine += ["deterministic"] if config.deterministic else []
    machine += ["activations computed again"] if config.activation_checkpointing else []
    rate = f", lr {config.peak_lr:g}"
    rate += f" ({config.lr:g} for {config.lr_batch_size} images)" if config.scale_lr else ""
    if config.warmup_epochs > config.epochs:
        rate += f", whose warm-up of {config.warmup_epochs:g} epochs the run ends before"
    rate += f", moving average of the weights {config.ema:g}" if config.ema else ""
    begun = f"; from {config.weights} weights" if config.weights else ""
    begun += f" ({', '.join(run.begun)})" if run.begun else ""
    if config.freeze_epochs:
        begun += f", in the first {config.freeze_epochs} epochs only the new layers train"
    images = describe_images(config.epochs, run.side, config.progressive)
    falls = describe_falls(config.schedule, config.milestones, config.epochs)
    falls += "; --milestones sets others" * bool(falls)
    left_out = data.train.num_samples % config.batch_size
    whole = f" (each epoch leaves {left_out:,} out, which fill no batch, others each time)" * bool(left_out)
    if config.accumulate > 1:
        rate += f", in {config.accumulate} parts of {config.batch_size // config.accumulate} images, each with batch "
        rate += "statistics of its own, which move the running ones"
    grown = {"branches": str(run.model.summary)} if isinstance(run.model, models.AttachedModel) else {}
    return {
        "data": f"{config.dataset}: {train}{whole} and {val}, {len(data.classes)} classes, {config.loader} loader"
        + corrupt * (config.corrupt_labels > 0),
        "network": f"{config.arch}, parameters: {sizes}{begun}",
        **grown,
        **({"images": images} if images else {}),
        **({"schedule": falls} if falls else {}),
        "method": f"{method_name(config)}, {steps}{rate}{start}",
        "machine": ", ".join(machine),
        "run": str(run.dir),
    }


def method_name(config: TrainConfig) -> str:
    """The method with what is unusual about it: ``dhm, top-down, bernoulli 0.5 every epoch``."""
    words = [config.method, *([f"{config.only_branch} alone"] if config.only_branch else [])]
    words += [config.direction] if config.direction != "both" else []
    for name in ("ce_weight", "mimic_weight", "temperature"):
        words += [f"{name} {getattr(config, name):g}"] if getattr(config, name) != 1 else []
    if config.sampler != "binary":
        prob = f" {config.keep_prob:g}" if config.sampler == "bernoulli" else ""
        words.append(f"{config.sampler}{prob} every {config.sample_every or methods.SAMPLERS[config.sampler]}")
    return ", ".join(words)


def print_plan(console: Console, lines: dict[str, str]) -> None:
    """A line for each, its name in bold."""
    for name, text in lines.items():
        console.print(Text.assemble((f"{name:<9}", "bold"), text))
