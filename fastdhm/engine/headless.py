"""Whether a run computes classifiers and loss together, a part of the logits at a time: what very many classes need."""

import torch

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.config.run import ALL_LOGITS
from fastdhm.data.loaders.crops import height_width
from fastdhm.engine import distributed
from fastdhm.errors import UserError
from fastdhm.system import memory
from fastdhm.system.place import place

SHARE = 16  # "auto" keeps the logits of a step whole while they take less than one part in so many of the memory
COPIES = 3  # of the logits in a step: as the classifiers give them, stacked, and their gradient


def pick_headless(
    config: TrainConfig, model: models.BranchedModel, num_classes: int, device: torch.device, precision: torch.dtype
) -> tuple[models.Headless | None, str]:
    """The model up to its classifiers, which are computed with the loss; None if the loss takes all logits at once.

    And why it does so where the logits are large, in words.

    Raises:
        ValueError: the config asks for it, and a branch does not end in an ``nn.Linear``.
    """
    size_CHW = (3, *height_width(config.image_size))
    if config.loss == "linear":
        try:
            return models.Headless(model, size_CHW), ""
        except UserError as error:
            raise UserError(f"loss is linear, and {error}: set loss to logits") from error
    is_large = logits_bytes(config, len(model.branch_names), num_classes, precision) > _memory_bytes(device) / SHARE
    if not distributed.largest(is_large):  # machines may differ in memory, but processes do the same
        return None, ""
    reasons = [why for takes, _, why in ALL_LOGITS if takes(config)]
    if config.loss == "logits" or reasons:
        return None, "loss is logits" if config.loss == "logits" else reasons[0]
    try:
        return models.Headless(model, size_CHW), ""
    except UserError as error:
        return None, str(error)


def logits_bytes(config: TrainConfig, branches: int, num_classes: int, precision: torch.dtype) -> int:
    """What a step of one process takes for logits and their gradient."""
    images = config.batch_size // config.accumulate // distributed.count()
    return COPIES * branches * images * num_classes * precision.itemsize


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    here = place()
    return memory.total_bytes() // (here.local_count if here else 1)  # the processes of a machine share its memory
