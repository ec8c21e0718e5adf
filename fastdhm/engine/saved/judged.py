"""What a run is judged on, in words: one place for training, evaluation and comparison to say the same."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fastdhm.config import TrainConfig
from fastdhm.data.sources.source import is_reid
from fastdhm.engine.saved.checkpoint import is_average, kept_checkpoint
from fastdhm.engine.saved.names import BEST

# Sets that have only training and test images: a run validates on the test images.
TEST_SETS = ("cifar10", "cifar100", "fashion-mnist")
FLATTERS = "chosen on these images, which flatters its error"


def judged_on(config: TrainConfig) -> str:
    """The kind of error that is measured after an epoch: ``seen-image`` if the run trains on these images, too.

    A re-identification set has no other images, unless some are held out.
    """
    return "seen-image" if is_reid(config.dataset) and not config.hold_out else "validation"


def judged_images(config: TrainConfig) -> str:
    """The images that a run is judged on, in words: ``the test images of cifar10``, ``val of photos``."""
    kind, _, path = config.dataset.partition(":")
    if is_reid(config.dataset):
        return "images held out of training" if config.hold_out else "some of the images that it trains on"
    if kind in TEST_SETS:
        return f"the test images of {kind}"
    if kind == "synthetic":
        return "drawn images that it does not train on"
    return f"val of {Path(path).name if path else kind}"


def is_chosen(path: Path, config: TrainConfig) -> bool:
    """Whether the run, checkpoint or network at ``path`` is of an epoch that was chosen by its validation error."""
    if path.is_dir():
        path = kept_checkpoint(path, config)
    return path.name == BEST if path.suffix == ".pt" else config.keep == "best"


def what_is_chosen(path: Path) -> str:
    """What :func:`is_chosen` has found chosen there, in words."""
    return "an epoch of the averaged networks" if path.suffix == ".safetensors" and is_average(path) else "the epoch"


def in_epochs(time: float) -> str:
    """A time in epochs, to a hundredth: ``1000``, ``0.33``."""
    return f"{round(time, 2):g}"


def validations(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The epochs of a log that were validated at the final image size; a progressive run begins with smaller images."""
    found = [row for row in rows if row["kind"] == "epoch" and "val_side" in row]
    return [row for row in found if row["val_side"] == found[-1]["val_side"]]


def kept_of(validated: Sequence[dict[str, Any]], config: TrainConfig) -> dict[str, Any]:
    """The validated epoch that a run's network is of, as far as it has come; an empty row before the first."""
    if not validated:
        return {}
    return best_of(validated, config.only_branch or "B0") if config.keep == "best" else validated[-1]


def best_of(validated: Sequence[dict[str, Any]], branch: str) -> dict[str, Any]:
    """The validated epoch with the branch's lowest error.

    An epoch cut by ``max_steps`` counts only if no complete epoch was validated: a resumed run completes it, and
    ``best.pt`` comes from complete epochs only.
    """
    complete = [row for row in validated if row["epoch"] == int(row["epoch"])]
    return min(complete or validated, key=lambda row: row.get(f"val_error/{branch}", math.inf))
