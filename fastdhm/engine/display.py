"""What a person sees while a run trains: a live bar, or plain lines where there is no terminal."""

from collections.abc import Callable

from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastdhm.engine.saved.judged import in_epochs
from fastdhm.system.console import PLAIN_LINE_SECONDS, Console, every, words

WIDE = 100  # columns
WAIT_SHOWN = 0.03  # of the time


class TrainingDisplay:
    """The live progress bar of a run: epoch, steps, loss, accuracy of each branch, images/s, time left.

    The time left is estimated from the speed of the last minute. ``work(n)`` is the work of the first ``n`` steps.
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
            "", total=work(total_steps), numbers="", wait="", steps=self._steps(step),
            completed=work(step),  # type: ignore[arg-type] # rich says int here, and counts in floats
        )  # fmt: skip

    def __enter__(self) -> "TrainingDisplay":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def expect(self, total_steps: int) -> None:
        """Take note of how many steps the run has, if that changes."""
        if total_steps != self.total_steps:
            self.total_steps = total_steps
            self.progress.update(self.task, total=self.work(total_steps))

    def advance(self, step: int, epoch: int, epochs: float) -> None:
        """Move the bar; called after every step, touches no tensor."""
        self.progress.update(
            self.task,
            completed=self.work(step),
            description=f"epoch {epoch + 1}/{in_epochs(epochs)}",
            steps=self._steps(step),
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

    def show_epoch(self, epoch: int, epochs: float, scalars: dict[str, float]) -> None:
        """A line for a validated epoch."""
        train, test = (
            " ".join(f"{name.split('/')[1]} {value:.2f}" for name, value in scalars.items() if name.startswith(kind))
            for kind in ("train_error/", "val_error/")
        )
        loss = f"loss {scalars['loss']:.3f}  train error % {train}" if "loss" in scalars else "validated again"
        if scalars["val_side"] != self.side:
            test += f" (at {scalars['val_side']} pixels)"
        judged = (f"{self.judged_on} error % {test}", "bold")
        self.print(Text.assemble(f"epoch {epoch + 1}/{in_epochs(epochs)}  {loss}  ", judged))

    def print(self, text: str | Text | Table) -> None:
        """Print above the bar."""
        self.progress.console.print(text)
