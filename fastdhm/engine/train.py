"""Training: the loop and its frame.

Legend: A the branches that a step computes, B batch.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.data.sources.people import CannotRank
from fastdhm.data.sources.source import is_reid
from fastdhm.engine.build import IMAGENET, open_data, open_to_judge
from fastdhm.engine.compiling import SwitchingCompute
from fastdhm.engine.device import computing_on, deterministic, peak_mib, pick_compile, pick_device
from fastdhm.engine.display import TrainingDisplay, plot_curves, print_plan, print_report
from fastdhm.engine.evaluate import Interrupted, evaluate
from fastdhm.engine.fast.blocks import goes_by_block
from fastdhm.engine.fast.graphs import GraphedStep, check_recomputed
from fastdhm.engine.optim.schedule import full_size_steps, image_side, learning_rate, mimic_scale
from fastdhm.engine.plan import method_name, plan
from fastdhm.engine.reid import HowToRank, NonFiniteFeatures, feature_layer, print_result, rank_people
from fastdhm.engine.run import Run
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.judged import judged_on
from fastdhm.engine.saved.names import BEST, CURVES, LAST, NETWORK
from fastdhm.engine.saved.owed import LAST_EPOCH, RANKING, owed
from fastdhm.engine.saved.record import Log, NonFiniteLoss, read_log
from fastdhm.engine.settle import run_folder, settle
from fastdhm.engine.step import make_step
from fastdhm.engine.timer import Timer, process_seconds
from fastdhm.errors import UserError
from fastdhm.methods import scale_mimicking
from fastdhm.system.console import Console, paste
from fastdhm.system.endings import belonging_to
from fastdhm.system.signals import stop_signals

SCHEDULE = ("lr", "epochs", "schedule", "milestones", "gamma", "warmup_epochs", "warmup_lr", "warmup")


@dataclass(frozen=True)
class Outcome:
    """How a call of :func:`train` ended: whole, or saved where ``signal`` stopped it; a signal that comes while the
    last of a run is written may find it whole."""

    run_dir: Path
    whole: bool
    signal: int | None = None


def fit(
    run: Run,
    data: LoadedData,
    compute: SwitchingCompute,
    log: Log,
    display: TrainingDisplay,
    stop: Callable[[], int | None],
) -> None:
    """Train from where the run stands to its end, to ``max_steps`` or to a signal; the caller saves the final state."""
    config, at, timer = run.config, run.at, Timer(run.at.step)
    step = make_step(run, compute)
    if config.cuda_graphs:
        step = GraphedStep(step, form=lambda: (compute.current, at.epoch < config.freeze_epochs))
    schedule = {name: getattr(config, name) for name in SCHEDULE} | {"lr": config.peak_lr}

    if LAST_EPOCH in owed(run.dir, config, read_log(run.dir)) and run.ended() and not stop():  # its row was lost
        finish_epoch(run, data, log, display, timer, stop)
    while at.epoch < config.epochs and not run.out_of_steps() and not stop():
        run.begin_epoch()
        run.trained.start()
        with timer.feed(data.train, at.epoch, at.batch, run.device) as batches:
            for batch in batches:
                now = at.epoch + at.batch / len(data.train)
                lr, scale = learning_rate(now, **schedule), mimic_scale(now, config.mimic_warmup)
                run.set_learning_rate(lr)
                compute.swap_if_ready()
                side = image_side(now / config.epochs, run.side, config.progressive)
                image_BCHW, target_B = run.to_device(batch, at.epoch, side)
                active, weights_AA = run.sample()
                run.measure_cosines(image_BCHW, target_B, active)
                run.whole = False
                values = step(image_BCHW, target_B, scale_mimicking(weights_AA, scale), active)

                at.batch, at.step = at.batch + 1, at.step + 1
                run.sums.add(at.step, len(target_B), *values, weights_AA, active)
                run.whole = True
                display.advance(at.step, at.epoch, config.epochs)
                if at.step == timer.first_step:
                    log.write("startup", step=at.step, epoch=now, startup_seconds=process_seconds())
                if at.step % config.log_every == 0:
                    scalars = run.sums.read_interval().scalars(run.model.branch_names)
                    scalars |= {"lr": lr, "mimic_scale": scale, **timer.interval(config.batch_size, at.step)}
                    scalars["peak_mib"] = peak_mib(run.device)
                    log.write("step", step=at.step, epoch=at.epoch + at.batch / len(data.train), **scalars)
                    display.show(at.step, at.epoch, scalars)
                if timer.minutes_since_save() >= config.save_minutes:
                    run.save()
                    timer.saved()
                if stop() or run.out_of_steps():
                    break
        if stop():
            return
        finish_epoch(run, data, log, display, timer, stop)
        timer.restart(at.step)


def finish_epoch(
    run: Run, data: LoadedData, log: Log, display: TrainingDisplay, timer: Timer, stop: Callable[[], int | None]
) -> None:
    """Save, validate where it is due, and move on to the next epoch; a run cut by ``max_steps`` stays where it is.

    Between two epochs only the validation is made: what was measured in training is in no checkpoint any more.
    """
    config, at = run.config, run.at
    whole, last = at.batch == len(data.train), at.epoch + 1 >= config.epochs or run.out_of_steps()
    scalars = {}
    if at.batch:
        scalars |= run.sums.read().scalars(run.model.branch_names)  # the device has finished its steps
        scalars |= {"peak_mib": peak_mib(run.device), **timer.epoch(config.batch_size, at.step)}
    run.trained.stop()
    scalars["train_seconds"] = run.trained.seconds
    run.save()  # before the validation, which can take long: nothing that was learnt may be lost in it
    # what a network that has only seen small images makes of large ones says little
    progress = 1.0 if last else (at.epoch + 1) / config.epochs
    side = image_side(progress, run.side, config.progressive)
    if last or (at.epoch + 1) % config.eval_every == 0:
        started = time.monotonic()
        try:
            errors = evaluate(run.judged, data.val, run.val_transform, run.device, run.precision, side, stop)
        except Interrupted:
            return
        scalars |= errors.scalars(run.model.branch_names)
        scalars |= {"val_side": side, "val_seconds": time.monotonic() - started}
        display.show_epoch(min(at.epoch, config.epochs - 1), config.epochs, scalars)
    log.write("epoch", step=at.step, epoch=at.epoch + at.batch / len(data.train), **scalars)
    log.sync()  # a checkpoint that outlives a power cut must not know of a row that does not
    main = f"val_error/{run.model.main}"
    # a cut epoch is none: the run may go on, as if it had not been cut
    best = whole and scalars.get("val_side") == run.side and scalars[main] < at.best_error
    if best:
        at.best_error, at.best_epoch = scalars[main], at.epoch
    if whole:
        at.epoch, at.batch = at.epoch + 1, 0
        run.sums.reset()
    if best:
        run.save(BEST)
    run.save()


def train(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> Outcome:
    """Train a network as ``config`` says, in a new run directory, or ``resume`` the run in ``config.run_dir``.

    Raises:
        ValueError: anything the user can mend: unknown names, data that is not there or not right, a run directory that
            holds another run, a full disk, a loss that is not finite.
    """
    console = console or Console()
    named, config = config.run_dir is not None, settle(config)
    if not resume and config.weights not in (None, IMAGENET) and not Path(config.weights).is_file():
        raise UserError(f"weights is {config.weights}: no such file; give one, or {IMAGENET} for torchvision's")
    with run_folder(Path(config.run_dir), named, console) as run_dir:
        config = dataclasses.replace(config, run_dir=str(run_dir))
        if resume:
            checkpoint.refuse_changed(run_dir, config)
        else:
            checkpoint.refuse_existing(run_dir, config)
        return _open_and_train(config, run_dir, console)


def _open_and_train(config: TrainConfig, run_dir: Path, console: Console) -> Outcome:
    judged = {}
    if is_reid(config.dataset):  # read what is judged at the end now: a bad file there must not cost a whole training
        splits = ("query", "gallery")
        try:
            for name, split in zip(splits, open_to_judge(config, console, *splits), strict=True):
                judged[name] = split.identity
                split.close()
        except CannotRank as error:  # no reason not to train
            console.print(f"people will not be ranked at the end: {error}")
    data = open_data(config, console)
    data = dataclasses.replace(data, identity=data.identity | judged)
    try:
        ordered = deterministic() if config.deterministic else nullcontext()
        computing = computing_on(pick_device(config.device), deterministic=config.deterministic)
        with ordered, computing, belonging_to(run_dir):
            return _train(config, run_dir, data, console)
    finally:
        data.close()


def _train(config: TrainConfig, run_dir: Path, data: LoadedData, console: Console) -> Outcome:
    run = Run(config, run_dir, data.classes)
    run.data = data.identity
    if is_reid(config.dataset):
        feature_layer(run.model.trunk, config)  # no features, no ranking: not found out after the training
    run.corrupt_labels(data.target_N)
    if run.device.type == "cuda":
        run.num_samples = len(data.target_N)
    total_steps = min(config.epochs * len(data.train), config.max_steps or 1 << 62)
    compiled, why_not = pick_compile(config.compile, run.device, total_steps, run.model)
    if compiled and config.activation_checkpointing and goes_by_block(run.model):
        raise UserError(
            f"compile is on and activation_checkpointing is true: {config.arch} is so deep that it is compiled by the "
            "block, which does not go together; set one of them off"
        )
    if config.cuda_graphs and config.activation_checkpointing:
        check_recomputed(run.model)
    run.config = config = dataclasses.replace(config, loader=data.kind, compile="on" if compiled else "off")
    if (run_dir / LAST).exists():
        run.restore(run_dir / LAST)
        checkpoint.write_config(run_dir, config)  # with where it runs now
        if not run.ended():  # what an earlier end left is no longer the run's
            (run_dir / NETWORK).unlink(missing_ok=True)
    else:  # a new run, or one that was killed before its first checkpoint
        if config.weights is not None:
            run.load_pretrained()
        checkpoint.write_config(run_dir, config)
        run.save()
    print_plan(console, plan(run, data, total_steps, why_not))
    whole = config.epochs * len(data.train)
    work = partial(full_size_steps, run_steps=whole, side=run.side, progressive=config.progressive)
    display = TrainingDisplay(console, total_steps, run.at.step, run.side, judged_on(config), work)
    log = Log(run_dir, run.at.step, run.at.epoch, display.print)
    try:
        with _telling_how_to_go_on(run, console), stop_signals() as stop:
            with display, SwitchingCompute(run, log, display.print) as compute:
                fit(run, data, compute, log, display, stop)
                run.save()
            trained, epoch = run.at.epoch == config.epochs, run.at.epoch + run.at.batch / len(data.train)
            whole = (trained or not stop()) and finish(run, log, epoch, console, stop)
            outcome = Outcome(run_dir, whole, stop())
    except NonFiniteLoss as error:
        at = checkpoint.load_checkpoint(run_dir / LAST)["position"]
        raise NonFiniteLoss(
            f"{error}; the last good checkpoint is {run_dir / LAST}, of step {at['step']}. "
            "Lower --lr, or ramp the mimicking by --mimic-warmup, in a new run"
        ) from error
    finally:
        log.close()
    if not (whole and trained):
        why = "cut by max_steps" if whole else "stopped"
        console.print(f"{why} after step {run.at.step}, saved; go on with: {_go_on(run_dir)}")
    return outcome


@contextmanager
def _telling_how_to_go_on(run: Run, console: Console) -> Iterator[None]:
    """Whatever ends what is inside, a person learns how to go on; not with weights that are of no use.

    What is not the run's own fault (its data, a disk, a worker process) costs nothing that was learnt, unless it comes
    within a step, where the state is not whole.
    """
    try:
        yield
    except (NonFiniteLoss, NonFiniteFeatures):
        raise
    except BaseException as error:
        with suppress(UserError, OSError):  # a run directory that is gone is not to be gone on with
            step = _last_saved(run, worth_saving=run.whole and isinstance(error, UserError | OSError))
            console.print(f"ended; go on from the last checkpoint, of step {step}, with: {_go_on(run.dir)}")
        raise


def _last_saved(run: Run, worth_saving: bool) -> int:
    """The step of the last checkpoint; it is written now, if that is ``worth_saving`` and can be done.

    Of the same step nothing is to be saved: if ``best.pt`` could not be written, its validation must be made again.
    """
    saved = checkpoint.load_checkpoint(run.dir / LAST)["position"]
    if worth_saving and saved["step"] != run.at.step:
        with suppress(UserError, OSError):  # it may be the saving itself that failed
            run.save()
            return run.at.step
    return saved["step"]


def _go_on(run_dir: Path) -> str:
    return paste("fastdhm", "train", "--resume", run_dir)


def finish(run: Run, log: Log, epoch: float, console: Console, stop: Callable[[], int | None]) -> bool:
    """Write the stripped network and the curves, and report, at the time ``epoch``; rank people where that is owed.

    Returns whether all of it is done: a signal stops the ranking, which is left to the resumed run.
    """
    kept = checkpoint.kept_checkpoint(run.dir, run.config)
    if kept.name == BEST:
        checkpoint.load_weights(run.judged, checkpoint.judged(checkpoint.load_checkpoint(kept)), kept, run.config.arch)
    network = run.judged.strip()
    checkpoint.save_network(run.dir / NETWORK, network, run.config, run.classes, run.data)
    rows = read_log(run.dir)
    title = f"{run.config.arch}, {method_name(run.config)}, {run.config.dataset}"
    plot_curves(rows, run.dir / CURVES, title, judged_on(run.config))
    process = "the process, resident" if run.peak_restarts else "the process since its start, resident"
    measured = "tensors of a step on the GPU" if run.device.type == "cuda" else process
    averaged = run.average is not None
    print_report(console, rows, run.config, run.model.branch_names, measured, averaged)
    main = run.model.main
    parts = "without the branches" if main == "B0" else "with the trunk up to its fork"
    parts += ", average of the weights" * averaged
    print_plan(console, {
        "network": f"{run.dir / NETWORK} ({main} of the {run.config.keep} epoch, {parts})",
        "curves": str(run.dir / CURVES),
        "check": paste("fastdhm", "eval", run.dir),
    })  # fmt: skip
    if RANKING in owed(run.dir, run.config, rows):
        try:
            ranked = rank_people(network, run.config, HowToRank(), console, stop)
        except Interrupted:
            return False
        except CannotRank as error:
            log.write("reid", step=run.at.step, epoch=epoch)  # nothing more is owed
            console.print(f"people are not ranked: {error}")
            return True
        log.write("reid", step=run.at.step, epoch=epoch, **ranked.percents())
        print_result(ranked, f"re-identification on {run.config.dataset} by the stripped network", console.print)
    return True
