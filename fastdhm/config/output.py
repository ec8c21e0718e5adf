"""What a run measures, keeps and writes."""

from dataclasses import dataclass
from typing import Literal

from fastdhm.config.rules import AT_LEAST_ONE, AT_LEAST_ZERO, POSITIVE, setting


@dataclass(frozen=True, kw_only=True)
class Output:
    """Validation and output."""

    __slots__ = ()

    run_dir: str | None = None
    """Folder that the run writes.
    Null: a new one under runs/."""
    eval_every: int = setting(1, AT_LEAST_ONE)
    """Epochs between validations.
    The last epoch always has one."""
    eval_batch_size: int = setting(256, AT_LEAST_ONE)
    """Images in a validation step."""
    keep: Literal["last", "best"] = "last"
    """Which epoch's network is kept: last or best.
    It is the one whose stripped network is written. best: the epoch with the lowest validation error of B0, or of the
    branch that is trained alone."""
    log_every: int = setting(50, AT_LEAST_ONE)
    """Steps between log points.
    Only there does the host wait for the device."""
    grad_cosine: int = setting(0, AT_LEAST_ZERO)
    """Measure how the branches' gradients agree every N steps; 0: never.
    It is their cosine at the forks (Eq. 11). Each measurement costs a forward pass, and a
    part of a backward pass for each branch."""
    save_minutes: float = setting(5.0, POSITIVE)
    """Minutes between checkpoints inside an epoch.
    Every epoch ends with one."""
    log_to: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Log to wandb, mlflow or both, too.
    Every row of log.jsonl goes there as well, and a resumed run goes on with the same run there. Their own environment
    variables say where: WANDB_MODE=offline, MLFLOW_TRACKING_URI, ... A failure of theirs is said once and ends no
    run."""
    report: bool = False
    """Write report.html at the end of every epoch.
    A page for the browser, which loads it again while the run trains. `fastdhm report RUN` writes it at any time."""
    profile: int = setting(0, AT_LEAST_ZERO)
    """Profile N steps: a trace, and a table by kind of work; 0: none.
    torch's profiler writes trace.json into the run's folder, in Chrome's format. The steps are the sixth and the
    following, once the step is compiled if it will be. The profiler slows them down: trust the shares, not the sums."""
