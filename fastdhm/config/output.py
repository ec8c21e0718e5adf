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
    report: bool = False
    """Write report.html at the end of every epoch.
    A page for the browser, which loads it again while the run trains. `fastdhm report RUN` writes it at any time."""
