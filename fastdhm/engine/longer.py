"""A run that goes on for more or fewer epochs than it was begun with: allowed where its past stays what it was."""

from pathlib import Path

from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.engine.optim.schedule import image_side
from fastdhm.engine.optimizer import learning_rate_of
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.names import LAST
from fastdhm.errors import UserError
from fastdhm.system.console import paste

PER_EPOCH = 16  # times of an epoch that are compared: between them, all that a schedule does is continuous


def refuse_other_past(run_dir: Path, config: TrainConfig) -> None:
    """``ValueError`` unless the steps that a run has behind it are those that it would have had with ``config.epochs``.

    So a run that goes on for longer is, bit for bit, the run that was begun with as many epochs.
    """
    if not (run_dir / LAST).exists():
        return
    saved = checkpoint.load_checkpoint(run_dir / LAST, mmap=True)
    if "position" not in saved:  # weights of others, with which no run goes on
        return
    before, at = checkpoint.config_from(saved["config"], run_dir / LAST), checkpoint.Position(**saved["position"])
    begun = at.epoch + (at.batch > 0)
    if config.epochs == before.epochs:
        return
    if at.plan is not None or at.timed_out:
        raise UserError(
            f"epochs is {config.epochs}, and {run_dir} is planned to its hours ({before.hours:g}): leave it out"
        )
    if config.epochs < begun:
        raise UserError(f"epochs is {config.epochs}, and {run_dir} has begun {begun}: must be {begun} or more")
    if what := first_change(before, config, begun):
        again = paste("fastdhm", "train", "--weights", run_dir, "--epochs", max(1, config.epochs - begun))
        raise UserError(
            f"epochs is {config.epochs}, and {run_dir} was begun with {before.epochs}: its steps so far would have had "
            f"another {what}. Begin a new run from its weights: {again} ..."
        )


def first_change(before: TrainConfig, after: TrainConfig, epochs: int) -> str:
    """What would have been another in the first ``epochs`` epochs; "" if nothing."""
    side = min(height_width(before.image_size))
    kinds = {
        "learning rate": learning_rate_of,
        "size of the images": lambda run, now: image_side(now / run.epochs, side, run.progressive),
        "mix of the images": lambda run, now: run.mix_off_epochs > 0 and now >= run.epochs - run.mix_off_epochs,
    }
    times = [number / PER_EPOCH for number in range(PER_EPOCH * epochs)]
    return next((what for what, of in kinds.items() if any(of(before, t) != of(after, t) for t in times)), "")
