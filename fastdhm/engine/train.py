"""Training: what happens in a run, in its order, and the loop."""

import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.data.sources.source import is_reid
from fastdhm.engine import distributed
from fastdhm.engine.build import open_data, opened_alike
from fastdhm.engine.compiling import SwitchingCompute, check_compiled
from fastdhm.engine.device import computing_on, deterministic, peak_mib, pick_compile, pick_device
from fastdhm.engine.display import TrainingDisplay
from fastdhm.engine.evaluate import Interrupted, ShouldStop
from fastdhm.engine.fast.graphs import GraphedStep
from fastdhm.engine.longer import refuse_other_past
from fastdhm.engine.optim.schedule import full_size_steps
from fastdhm.engine.plan import plan, print_plan, why_early
from fastdhm.engine.profile import StepProfile
from fastdhm.engine.reid import feature_layer, rank_at_end, read_ranked
from fastdhm.engine.report import report, say_how_to_go_on, telling_how_to_go_on
from fastdhm.engine.run import Run
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.judged import judged_on
from fastdhm.engine.saved.names import BEST, LAST, NETWORK
from fastdhm.engine.saved.owed import LAST_EPOCH, RANKING, owed
from fastdhm.engine.saved.record import Log, NoLog, read_log
from fastdhm.engine.saved.watchers import check_installed, watchers
from fastdhm.engine.settle import check_weights, run_folder, settle
from fastdhm.engine.step import make_step, take_step
from fastdhm.engine.timer import Timer, process_seconds
from fastdhm.engine.validation import validate
from fastdhm.page.run import keep_run_page
from fastdhm.system.console import Console
from fastdhm.system.endings import belonging_to
from fastdhm.system.files import sha256_of
from fastdhm.system.signals import stop_signals


@dataclass(frozen=True)
class Outcome:
    """How a call of :func:`train` ended: the run is finished, or ``signal`` stopped it and its state is saved.

    If a signal comes while a run writes its last files, both can be true.
    """

    run_dir: Path
    finished: bool
    signal: int | None = None


def train(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> Outcome:
    """Train a network as ``config`` says, in a new run directory, or ``resume`` the run in ``config.run_dir``.

    Raises:
        ValueError: anything the user can mend: unknown names, data that is not there or not right, a run directory that
            holds another run, a full disk, a loss that is not finite.
    """
    with distributed.joined(config.device):
        console = Console(quiet=True) if distributed.rank() else console or Console()
        named, config = config.run_dir is not None, settle(config)
        if not resume:
            check_weights(config)
        assert config.run_dir is not None  # now it is settled
        with _folder_of_all(config, named, console) as run_dir:
            config = dataclasses.replace(config, run_dir=str(run_dir))
            refuse = checkpoint.refuse_changed if resume else checkpoint.refuse_existing
            if distributed.rank() == 0:
                refuse(run_dir, config)
                if resume:
                    refuse_other_past(run_dir, config)
                check_installed(config.log_to)
            distributed.check_alike("", dataclasses.asdict(dataclasses.replace(config, device="", data_dir="")))
            with distributed.in_turn():
                ranked = read_ranked(config, console)
                data = open_data(config, console)
            data = opened_alike(data, config, console)
            distributed.check_alike("images of ", data.identity | ranked)
            with closing(data), _computing(config), belonging_to(run_dir):
                return _train(config, run_dir, dataclasses.replace(data, identity=data.identity | ranked), console)


@contextmanager
def _folder_of_all(config: TrainConfig, named: bool, console: Console) -> Iterator[Path]:
    """The run directory, which the first of several processes holds."""
    if distributed.rank():
        yield distributed.from_first(None)
    else:
        assert config.run_dir is not None
        with run_folder(Path(config.run_dir), named, console) as run_dir:
            yield distributed.from_first(run_dir)


@contextmanager
def _computing(config: TrainConfig) -> Iterator[None]:
    """Inside, torch computes on the run's device, and in a fixed order where the run asks for that."""
    ordered = deterministic() if config.deterministic else nullcontext()
    with ordered, computing_on(pick_device(config.device), deterministic=config.deterministic):
        yield


def _train(config: TrainConfig, run_dir: Path, data: LoadedData, console: Console) -> Outcome:
    run = Run(config, run_dir, data.classes)
    if is_reid(config.dataset):
        feature_layer(run.model.trunk, config)  # fail now, not after the training, if there are no features to rank by
    run.learn_from(data)
    compiled, why_not = pick_compile(config.compile, run.device, run.total_steps, run.model)
    if distributed.largest(not compiled) and compiled:
        compiled, why_not = False, " (another process does not)"
    check_compiled(run, compiled)
    run.config = config = dataclasses.replace(run.config, loader=data.kind, compile="on" if compiled else "off")
    _begin(run)
    print_plan(console, plan(run, data, why_not))
    all_steps = config.epochs * run.epoch_steps  # max_steps does not change the phases of the image size
    work = partial(full_size_steps, run_steps=all_steps, side=run.side, progressive=config.progressive)
    display = TrainingDisplay(console, run.total_steps, run.at.step, run.side, judged_on(config), work)
    with (
        stop_signals() as noted,
        closing(_log_of(run, display)) as log,
        telling_how_to_go_on(run, console),
    ):
        stop = distributed.Agreed(noted)
        with display, SwitchingCompute(run, log, display.print) as compute:
            fit(run, data, compute, log, display, stop)
        finished = run.trained() or not stop()
        if finished:
            finished = finish(run, log, console, stop)
        outcome = Outcome(run_dir, finished, noted() or stop.answer)
    if finished and run.at.epoch < config.epochs and run.trained():
        console.print(why_early(run))
    elif not (finished and run.trained()):
        why = "cut by max_steps" if finished else "stopped"
        say_how_to_go_on(run, f"{why} after step {run.at.step}, saved; go on with", console)
    return outcome


def _begin(run: Run) -> None:
    """Take up the last checkpoint, or write the first if there is none."""
    last = run.dir / LAST
    resumed = distributed.from_first(last.exists())  # not so if it was killed before its first checkpoint
    if resumed:
        if distributed.count() > 1:  # machines may see folders of their own, or one that a network drive holds back
            own = sha256_of(last)[:12] if last.exists() else "none"
            distributed.check_alike("", {f"a {LAST} of checksum": own})
        run.restore(last)
    elif run.config.weights is not None:
        run.load_pretrained()
    if distributed.rank() == 0:
        checkpoint.write_config(run.dir, run.config)  # with where it runs now
    if not resumed:
        run.save()
    elif not run.ended() and distributed.rank() == 0:  # the network of an earlier end is out of date
        (run.dir / NETWORK).unlink(missing_ok=True)


def _log_of(run: Run, display: TrainingDisplay) -> Log:
    if distributed.rank():
        return NoLog()
    beside = watchers(run.config, run.dir, display.print)
    return Log(run.dir, run.at.step, run.at.epoch, display.print, beside)


def fit(
    run: Run, data: LoadedData, compute: SwitchingCompute, log: Log, display: TrainingDisplay, stop: ShouldStop
) -> None:
    """Train from where the run stands to its end, to ``max_steps``, its hours or a signal; its last state is saved."""
    config, at, timer = run.config, run.at, Timer(run.at.step)
    profile = StepProfile(run, lambda: not compute.waiting, display.print)
    save_minutes = run.hours.save_minutes(config.save_minutes)
    save_is_due = distributed.Agreed(lambda: timer.minutes_since_save() >= save_minutes)
    run.hours.clock.start()
    step = make_step(run, compute)
    if config.cuda_graphs:
        step = GraphedStep(step, form=lambda: (compute.current, at.epoch < config.freeze_epochs))

    row_lost = distributed.from_first(LAST_EPOCH in owed(run.dir, config, read_log(run.dir)))
    if row_lost and run.ended() and not stop():
        finish_epoch(run, data, log, display, timer, stop)
    while not run.ended() and not stop():
        run.begin_epoch()
        run.stopwatch.start()
        with timer.feed(data.train, at.epoch, at.batch, run.device) as fed, profile.of(fed) as batches:
            for batch in batches:
                now = run.now
                lr, scale, side = run.scheduled(now)
                run.set_learning_rate(lr)
                compute.swap_if_ready()
                take_step(run, step, batch, scale, side)
                display.advance(at.step, at.epoch, run.end)
                if at.step == timer.first_step:
                    run.hours.measure_from(run.now, at.plan, run.stopwatch.seconds)
                    log.write("startup", step=at.step, epoch=now, startup_seconds=process_seconds())
                if at.step % config.log_every == 0:
                    scalars = run.sums.read_interval().scalars(run.sums.names)
                    scalars |= {"lr": lr, "mimic_scale": scale, **timer.interval(config.batch_size, at.step)}
                    scalars["peak_mib"] = peak_mib(run.device)
                    log.write("step", step=at.step, epoch=run.now, **scalars)
                    display.show(at.step, at.epoch, scalars)
                if save_is_due():
                    run.plan_hours()
                    run.save()
                    timer.saved()
                    display.expect(run.total_steps)
                if stop() or run.out_of_steps() or run.out_of_time():
                    break
        if stop():
            run.save()
            return
        finish_epoch(run, data, log, display, timer, stop)
        timer.restart(at.step)


def finish_epoch(
    run: Run, data: LoadedData, log: Log, display: TrainingDisplay, timer: Timer, stop: ShouldStop
) -> None:
    """Save, validate if this epoch does, and move on to the next epoch; a run that is cut stays where it is.

    Called between two epochs it only validates: no checkpoint holds what was measured in the epoch before.
    """
    config, at = run.config, run.at
    epoch_done = at.batch == run.epoch_steps
    last = at.epoch + 1 >= run.end or run.out_of_steps() or at.timed_out
    scalars: dict[str, Any] = {}
    if at.batch:
        scalars |= run.sums.read().scalars(run.sums.names)  # the device has finished its steps
        scalars |= {"peak_mib": peak_mib(run.device), **timer.epoch(config.batch_size, at.step)}
    run.stopwatch.stop()
    scalars["train_seconds"] = run.stopwatch.seconds
    run.save()  # before the validation, which can take long: nothing learnt may be lost during it
    if last or (at.epoch + 1) % config.eval_every == 0:
        try:
            scalars |= validate(run, data, last, stop, display.print)
        except Interrupted:
            return
        display.show_epoch(min(at.epoch, config.epochs - 1), run.end, scalars)
    main = f"val_error/{run.model.main}"
    # an epoch that max_steps cut does not count: the run may go on as if it had not been cut
    best = epoch_done and scalars.get("val_side") == run.side and scalars[main] < at.best_error
    if best:
        at.best_error, at.best_epoch = scalars[main], at.epoch
    if epoch_done:
        at.epoch, at.batch = at.epoch + 1, 0
    if not run.ended():
        run.plan_hours()
        display.expect(run.total_steps)
    early = run.trained() and at.epoch < config.epochs
    log.write("epoch", step=at.step, epoch=run.now, **scalars, **({"ended": 1} if early else {}))
    if config.report and distributed.rank() == 0:
        keep_run_page(run.dir, display.print)
    log.sync()  # first: after a power cut the checkpoint must not be ahead of the log
    if epoch_done:
        run.sums.reset()
    if best:
        run.save(BEST)
    run.save()


def finish(run: Run, log: Log, console: Console, stop: ShouldStop) -> bool:
    """Write the stripped network and the curves, and report; rank people where that is owed.

    The first of several processes writes, all rank. Returns False if a signal stopped the ranking, which a resumed run
    then does.
    """
    to_rank = distributed.from_first(_write_results(run, console) if distributed.rank() == 0 else None)
    if not to_rank:
        return True
    network = run.judged.strip()
    distributed.take_from_first(network)
    return rank_at_end(network, run, log, console, stop)


def _write_results(run: Run, console: Console) -> bool:
    """Write and report what a run leaves behind; whether a ranking of people is owed beside it."""
    kept = checkpoint.kept_checkpoint(run.dir, run.config)
    if kept.name == BEST:
        checkpoint.load_weights(run.judged, checkpoint.judged(checkpoint.load_checkpoint(kept)), kept, run.config.arch)
    checkpoint.save_network(run.dir / NETWORK, run.judged.strip(), run.config, run.classes, run.identity)
    rows = read_log(run.dir)
    report(run, rows, console)
    return RANKING in owed(run.dir, run.config, rows)
