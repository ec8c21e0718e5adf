"""What a person watching a run sees: a live bar (plain lines without a terminal), at the end a table and curves.

Legend: M branches.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastdhm.config import TrainConfig
from fastdhm.engine.saved.judged import FLATTERS, best_of, judged_images, judged_on, validations
from fastdhm.system.console import PLAIN_LINE_SECONDS, Console, every, words
from fastdhm.system.plotting import save_figure

WIDE = 100  # columns
WAIT_SHOWN = 0.03  # of the time


class TrainingDisplay:
    """The live progress bar of a run: epoch, steps, loss, accuracy of each branch, images/s, time left.

    The time left is that of the last minute for the ``work`` that is left: of so many steps, the number that counts.
    """

    def __init__(
        self,
        console: Console,
        total_steps: int,
        step: int,
        side: int,
        judged_on: str,
        work: Callable[[int], float] = float,
    ):
        self.console, self.side, self.judged_on, self.work = console, side, judged_on, work
        wide = console.width >= WIDE  # in 80 columns the numbers matter more than the bar
        self.progress = Progress(
            words("{task.description}"),
            *([BarColumn(bar_width=None)] if wide else []),
            words("{task.fields[steps]}", style="progress.download"),
            words("{task.fields[numbers]}"),
            words("{task.fields[wait]}", style="yellow"),
            *([words("left", style="dim")] if wide else []),
            TimeRemainingColumn(),
            console=console,
            expand=wide,
            refresh_per_second=4,
            speed_estimate_period=60,
            disable=not console.live,
        )
        self.total_steps, self.is_time = total_steps, every(PLAIN_LINE_SECONDS)
        self.task = self.progress.add_task(
            "", total=work(total_steps), completed=work(step), numbers="", wait="", steps=self._steps(step)
        )

    def __enter__(self) -> "TrainingDisplay":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def advance(self, step: int, epoch: int, epochs: int) -> None:
        """Move the bar; called after every step, touches no tensor."""
        self.progress.update(
            self.task, completed=self.work(step), description=f"epoch {epoch + 1}/{epochs}", steps=self._steps(step)
        )

    def show(self, step: int, epoch: int, scalars: dict[str, float]) -> None:
        """Show the numbers of a log point."""
        errors = {name.split("/")[1]: value for name, value in scalars.items() if name.startswith("train_error/")}
        accuracy = " ".join(f"{name} {100 - error:.1f}" for name, error in errors.items())
        numbers = f"loss {scalars['loss']:.3f} acc {accuracy} {scalars['images_per_s']:.0f} img/s"
        wait = f"data wait {scalars['data_wait']:.0%}" if scalars["data_wait"] >= WAIT_SHOWN else ""
        self.progress.update(self.task, numbers=numbers, wait=wait)
        if not self.console.live and self.is_time():
            left = self.progress.tasks[0].time_remaining
            wait = f" {wait}" * bool(wait) + (f"  {left / 60:.1f} min left" if left is not None else "")
            self.print(f"epoch {epoch + 1}  step {step}/{self.total_steps}  {numbers}{wait}")

    def _steps(self, step: int) -> str:
        return f"{step:{len(str(self.total_steps))}}/{self.total_steps}"

    def show_epoch(self, epoch: int, epochs: int, scalars: dict[str, float]) -> None:
        """A line for a validated epoch."""
        train, test = (
            " ".join(f"{name.split('/')[1]} {value:.2f}" for name, value in scalars.items() if name.startswith(kind))
            for kind in ("train_error/", "val_error/")
        )
        loss = f"loss {scalars['loss']:.3f}  train error % {train}" if "loss" in scalars else "validated again"
        if scalars["val_side"] != self.side:
            test += f" (at {scalars['val_side']} pixels)"
        judged = (f"{self.judged_on} error % {test}", "bold")
        self.print(Text.assemble(f"epoch {epoch + 1}/{epochs}  {loss}  ", judged))

    def print(self, text: str | Text) -> None:
        """Print above the bar."""
        self.progress.console.print(text)


def print_plan(console: Console, lines: dict[str, str]) -> None:
    """Say what is about to happen."""
    for name, text in lines.items():
        console.print(Text.assemble((f"{name:<9}", "bold"), text))


def print_report(
    console: Console,
    rows: list[dict[str, Any]],
    config: TrainConfig,
    names: tuple[str, ...],
    measured: str,
    averaged: bool = False,
) -> None:
    """The table of errors of a run's end, and of its best epoch, on the images that it is judged on, by its weights or
    their moving average; below it what has to be known of them, and the most memory that training took, of what
    ``measured`` says."""
    validated = validations(rows)
    if not validated:
        return
    last, best = validated[-1], best_of(validated, names[0])
    title = f"{judged_on(config)} error after {last['epoch']:g} epochs{', moving average of the weights' * averaged}"
    title += f", on {judged_images(config)}"
    console.print(title, style="italic")
    table = Table()
    for column in ("branch", "top-1 %", "top-5 %", f"best epoch ({best['epoch']:g}), top-1 %"):
        table.add_column(column, justify="left" if column == "branch" else "right")
    for name in names:
        cells = [last.get(f"val_error/{name}"), last.get(f"val_top5_error/{name}"), best.get(f"val_error/{name}")]
        style = "bold" if name == names[0] else ""
        table.add_row(name, *("-" if cell is None else f"{cell:.2f}" for cell in cells), style=style)
    console.print(table)
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
    )  # a layout that fits itself draws twice
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
