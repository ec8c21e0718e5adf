"""How long a run is, and what a step of it is."""

from dataclasses import dataclass
from typing import Literal

from fastdhm.config.rules import AT_LEAST_ONE, POSITIVE, SEED, setting


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Epochs and steps."""

    __slots__ = ()

    preset: Literal["paper", "efficient", "fast", "modern", "finetune"] = "paper"
    """Recipe for all that is not given: paper, efficient, fast, modern or finetune.
    efficient has one side branch, B2, which keeps most of the gain for less time; folders have it by default.
    fast reaches a given error in less time: one short cycle of the learning rate, larger batches with lr scaled to
    them, small images first, no decay of norms and biases, and side branches that take part in some steps only. It was
    measured on fashion-mnist alone. modern, for imagenet: mixes of images, TrivialAugment, an average of the weights.
    finetune, for a folder of a few thousand images: begins from trained weights."""
    epochs: int = setting(100, AT_LEAST_ONE)
    """Passes over the training images."""
    max_steps: int | None = setting(None, AT_LEAST_ONE)
    """End the run, in order, after this many steps.
    Null: no limit."""
    hours: float | None = setting(None, POSITIVE)
    """Plan the run to this many hours, and end it then.
    Training and validations count, over all resumes. Where its epochs do not all fit, it has fewer: the speed so far
    says how many, and the schedule falls faster, to its end. Where they fit, nothing changes. Null: no limit."""
    patience: int | None = setting(None, AT_LEAST_ONE)
    """End the run after this many epochs without a lower error of B0.
    Asked at validations. The network kept is then of the last epoch, N after the best; with --keep best of the best.
    Null: all epochs."""
    batch_size: int = setting(128, AT_LEAST_ONE)
    """Images in an optimizer step."""
    sync_bn: bool = False
    """Batch norms take statistics over all processes.
    Each takes them over its own images otherwise. It changes nothing in a run of one process."""
    accumulate: int = setting(1, AT_LEAST_ONE)
    """Cut each batch into this many parts, to save memory.
    The parts are computed one after the other; the batch stays the same size. Batch norm takes the statistics of each
    part, and moves the running ones once for each part."""
    seed: int = setting(0, SEED)
    """Seed of weights, order of images and augmentation."""
