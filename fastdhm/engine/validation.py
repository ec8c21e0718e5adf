"""The validation of a run that trains: at the image size that it has reached, of the network that it keeps."""

import time
from collections.abc import Callable
from itertools import islice

import torch

from fastdhm.data import LoadedData
from fastdhm.data.loaders.ahead import copied_ahead
from fastdhm.data.loaders.loader import Loader
from fastdhm.data.sources.source import is_reid
from fastdhm.engine import distributed
from fastdhm.engine.device import autocast
from fastdhm.engine.evaluate import Kept, ShouldStop, evaluate
from fastdhm.engine.hours import time_in_schedule
from fastdhm.engine.optim.schedule import image_side
from fastdhm.engine.optim.schedule_free import ScheduleFreeAverage
from fastdhm.engine.run import Run
from fastdhm.engine.saved.judged import judged_images
from fastdhm.engine.shared_gradients import average_buffers
from fastdhm.errors import UserError
from fastdhm.per_class.result import FOLDER, result, write_result

NORM_BATCHES = 50  # that schedule-free batch norms are measured on, as in its library's notes


def validate(run: Run, data: LoadedData, last: bool, stop: ShouldStop, say: Callable[[str], None]) -> dict[str, float]:
    """The errors after an epoch, as the log has them. A progressive run is validated at the image size that it has
    reached: how its network does on larger ones says little."""
    config, started = run.config, time.monotonic()
    progress = 1.0 if last else time_in_schedule(run.at.epoch + 1, run.at.plan, config.epochs) / config.epochs
    side = image_side(progress, run.side, config.progressive)
    if isinstance(run.average, ScheduleFreeAverage):
        _measure_norms(run, run.average, data.train, side)
    kept = Kept() if config.report and side == run.side and not is_reid(config.dataset) else None
    errors = evaluate(run.judged, data.val, run.val_transform, run.device, run.precision, side, stop, kept)
    if kept is not None:
        _keep_answers(run, data, kept, say)
    times = {"val_side": side, "val_seconds": time.monotonic() - started}
    run.hours.validated(times["val_seconds"])
    return errors.scalars(run.model.branch_names) | times


def _measure_norms(run: Run, average: ScheduleFreeAverage, loader: Loader, side: int) -> None:
    """Measure the batch norms of a schedule-free average on training images, those of the first epoch."""
    devices = [run.device] if run.device.type == "cuda" else []
    with loader.epoch(0) as batches, autocast(run.device, run.precision), torch.random.fork_rng(devices):
        few = islice(copied_ahead(batches, run.device), NORM_BATCHES)
        average.measure_norms(run.prepare(batch, 0, side)[0] for batch in few)
    average_buffers(average.model)


def _keep_answers(run: Run, data: LoadedData, kept: Kept, say: Callable[[str], None]) -> None:
    """Leave what the main branch says of the validation images for the page of a run; what cannot be costs it nothing.

    Each of several processes has its answers in ``kept``, and the first writes.
    """
    try:
        answers = kept.answers(data.val, len(run.classes))
        if distributed.rank() == 0:
            about = f"the validation on {judged_images(run.config)}"
            values = result(answers[0], run.classes, data.val_source.image, about, run.at.step)
            write_result(run.dir / FOLDER / run.model.main, values)
    except (UserError, OSError) as error:
        say(f"classes are left out of the report: {error}")
