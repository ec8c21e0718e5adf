"""What a person is told at the end of a run: its errors as a table, its curves, and how to go on with it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.table import Table

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.engine import distributed
from fastdhm.engine.plan import method_name, print_plan
from fastdhm.engine.reid import NonFiniteFeatures
from fastdhm.engine.run import Run
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.judged import FLATTERS, best_of, in_epochs, judged_images, judged_on, validations
from fastdhm.engine.saved.names import CURVES, LAST, NETWORK
from fastdhm.engine.sums import NonFiniteLoss
from fastdhm.errors import UserError
from fastdhm.system.console import Console, paste
from fastdhm.system.plotting import save_figure


def report(run: Run, rows: list[dict[str, Any]], console: Console) -> None:
    """Draw the curves of a run from the ``rows`` of its log, print its errors, and say where its network lies."""
    config, main, averaged = run.config, run.model.main, run.average is not None
    title = f"{config.arch}, {method_name(config)}, {config.dataset}"
    plot_curves(rows, run.dir / CURVES, title, judged_on(config))
    process = "the process, resident" if run.peak_restarts else "the process since its start, resident"
    measured = "tensors of a step on the GPU" if run.device.type == "cuda" else process
    print_report(console, rows, config, run.model.branch_names, measured, averaged, len(run.classes))
    parts = "without the branches" if main == "B0" else "with the trunk up to its fork"
    parts += ", average of the weights" * averaged
    print_plan(console, {
        "network": f"{run.dir / NETWORK} ({main} of the {config.keep} epoch, {parts})",
        "curves": str(run.dir / CURVES),
        "check": paste("fastdhm", "eval", run.dir),
    })  # fmt: skip


def print_report(
    console: Console,
    rows: list[dict[str, Any]],
    config: TrainConfig,
    names: tuple[str, ...],
    measured: str,
    averaged: bool = False,
    num_classes: int = 2,
) -> None:
    """Print a table of the errors after the last epoch and after the best one, and the peak memory of the training.

    It also has what each branch costs as a network of its own. ``averaged``: the errors are those of the moving average
    of the weights. ``measured`` says whose memory it is.
    """
    validated = validations(rows)
    if not validated:
        return
    last, best = validated[-1], best_of(validated, names[0])
    title = f"{judged_on(config)} error after {in_epochs(last['epoch'])} epochs"
    title += f"{', moving average of the weights' * averaged}, on {judged_images(config)}"
    console.print(title, style="italic")
    costs = models.cost_cells(config.arch, num_classes, config.image_size, names)
    table = Table()
    best_title = f"best epoch ({in_epochs(best['epoch'])}), top-1 %"
    for column in ("branch", "top-1 %", "top-5 %", best_title, "parameters", "multiply-adds"):
        table.add_column(column, justify="left" if column == "branch" else "right")
    for name in names:
        values = [last.get(f"val_error/{name}"), last.get(f"val_top5_error/{name}"), best.get(f"val_error/{name}")]
        errors = ("-" if value is None else f"{value:.2f}" for value in values)
        table.add_row(name, *errors, *costs.get(name, ("-", "-")), style="bold" if name == names[0] else "")
    console.print(table)
    if costs and len(names) > 1:
        console.print("a branch costs its own layers and the trunk up to its fork; --branch takes one, or the ensemble")
    kept = "; the network kept is of it" * (config.keep == "best")
    console.print(f"the best epoch is {FLATTERS}{kept}")
    peaks = [row["peak_mib"] for row in rows if "peak_mib" in row]
    if peaks:
        console.print(f"peak memory {max(peaks):,.0f} MiB ({measured})")


def plot_curves(rows: list[dict[str, Any]], path: Path, title: str, judged_on: str) -> None:
    """Draw loss and error over the epochs from the rows of a log, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    epochs = [row for row in rows if row["kind"] == "epoch"]
    steps = [row for row in rows if row["kind"] == "step"]
    steps = steps or [row for row in epochs if "loss" in row]  # a short run has no log points
    figure, (loss_axis, error_axis) = plt.subplots(1, 2, figsize=(11, 4.2))
    figure.subplots_adjust(
        left=0.055, right=0.985, bottom=0.115, top=0.905, wspace=0.15
    )  # fixed: an automatic layout would draw twice
    loss_axis.plot(
        [row["epoch"] for row in steps], [row.get("loss") for row in steps], color="0.4", label="loss (weighted sum)"
    )
    for name in sorted({key for row in steps for key in row if key.startswith("ce/")}):
        loss_axis.plot([row["epoch"] for row in steps], [row.get(name) for row in steps], lw=1, label=name)
    loss_axis.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    for m, name in enumerate(sorted({key for row in epochs for key in row if key.startswith("val_error/")})):
        branch, colour = name.split("/")[1], f"C{m}"
        train = [row.get(f"train_error/{branch}") for row in steps]
        error_axis.plot(
            [row["epoch"] for row in steps], train, lw=0.8, alpha=0.5, color=colour, label=f"{branch} train"
        )
        test = [row.get(name) for row in epochs]
        error_axis.plot([row["epoch"] for row in epochs], test, "o-", ms=4, color=colour, label=f"{branch} {judged_on}")
    error_axis.set(xlabel="epoch", ylabel="top-1 error, %", ylim=(0, None))
    for axis in (loss_axis, error_axis):
        axis.grid(alpha=0.3)
        axis.set_xlim(0, None)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axis.lines:
            axis.legend(fontsize=8)
    figure.suptitle(title)
    save_figure(figure, path, dpi=120)
    plt.close(figure)


@contextmanager
def telling_how_to_go_on(run: Run, console: Console) -> Iterator[None]:
    """If an exception ends what is inside, say how to resume; not if the weights are broken.

    An error that is not the run's own fault (its data, a disk, a worker process) costs no step: a checkpoint is written
    now. Only an error in the middle of a step prevents that, as the state is inconsistent there.
    """
    last = run.dir / LAST
    try:
        yield
    except NonFiniteFeatures:
        raise
    except NonFiniteLoss as error:
        raise NonFiniteLoss(
            f"{error}; the last good checkpoint is {last}, of step {_saved_step(last)}. "
            "Lower --lr, or ramp the mimicking by --mimic-warmup, in a new run"
        ) from error
    except BaseException as error:
        if isinstance(error, UserError) and not (run.between_steps or run.at.step):
            raise  # the settings do not allow even the first step, so a resumed run would fail, too
        with suppress(UserError, OSError):  # a run directory that was deleted cannot be resumed
            alone = distributed.count() == 1  # several would have to be well, all of them
            if alone and run.between_steps and isinstance(error, UserError | OSError):
                _save_late(run, last)
            say_how_to_go_on(run, f"ended; go on from the last checkpoint, of step {_saved_step(last)}, with", console)
        raise


def _save_late(run: Run, last: Path) -> None:
    """Write a checkpoint of the steps since the last one, if that can be done.

    Do not overwrite a checkpoint of the same step: if ``best.pt`` could not be written, the resumed run must validate
    again.
    """
    if _saved_step(last) != run.at.step:
        with suppress(UserError, OSError):  # it may be the saving itself that failed
            run.save()


def _saved_step(last: Path) -> int:
    return checkpoint.load_checkpoint(last, mmap=True)["position"]["step"]


def say_how_to_go_on(run: Run, why: str, console: Console) -> None:
    """Print ``why`` it is needed, and the command that resumes the run."""
    console.print(f"{why}: {paste('fastdhm', 'train', '--resume', run.dir)}")
