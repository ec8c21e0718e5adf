"""Which images a run learns from, and how they are kept and read."""

import math
from dataclasses import dataclass
from typing import Literal

from fastdhm.config.rules import AT_LEAST_ONE, AT_LEAST_ZERO, SEED, SHARE, Rule, setting

MAX_STORED_SIDE = 65535  # pixels; what JPEG and .beton files can say
AS_STORED = f"1 to {MAX_STORED_SIDE} pixels, or 0 to store images as large as they are"


def _rising(ends: tuple[float, float]) -> bool:
    return len(ends) == 2 and -math.inf < ends[0] < ends[1] < math.inf


STORED_SIDE = Rule(AS_STORED, lambda n: 0 <= n <= MAX_STORED_SIDE)
GREY_RANGE = Rule("two finite numbers, the second above the first", _rising)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data."""

    __slots__ = ()

    dataset: str = "fashion-mnist"
    """Images to learn from: cifar10 or folder:PATH, say.
    To tell classes apart: fashion-mnist, cifar10, cifar100, imagenet, folder:PATH (PATH/train and PATH/val, a folder
    for each class) or synthetic (drawn images). To tell people apart: market1501, dukemtmc, reid-folder:PATH (laid out
    as Market-1501) or reid-synthetic. DukeMTMC-reID was withdrawn by its makers: it is never downloaded, and a copy
    that you hold and may use is read from the data folder."""
    data_dir: str | None = None
    """Folder of the data sets.
    What is built from them goes there too. Null: $FASTDHM_DATA or ~/.cache/fastdhm."""
    subset: int | None = setting(None, AT_LEAST_ONE)
    """Train on this many images, spread evenly over the classes.
    Which ones is fixed, whatever the seed is. Null: all."""
    hold_out: bool = False
    """Re-identification: keep the validation images out of training.
    Use it to choose settings by. Published results train on all images."""
    corrupt_labels: float = setting(0.0, SHARE)
    """Share of the training labels to corrupt, in [0, 1].
    Each label is replaced, with this probability, by a class that is drawn uniformly from all of them: of K classes,
    one label in K of the replaced stays right. The same labels are corrupt for the whole run. Those of validation stay
    true."""
    corrupt_seed: int = setting(0, SEED)
    """Seed of which labels are corrupt, and how."""
    loader: Literal["auto", "resident", "ffcv", "torch"] = "auto"
    """Who feeds the images: resident, ffcv, torch or auto.
    resident holds all images on the device; it is for images that need no resizing. auto takes resident up to 2 GiB and
    a quarter of the memory, else ffcv where it is installed, else torch."""
    workers: int | None = setting(None, AT_LEAST_ZERO)
    """Threads or processes that load images.
    They are threads of ffcv's loader, processes of torch's. Null: by the processors. That is one for each processor
    beside a GPU, and fewer on a CPU."""
    store: Literal["raw", "jpg", "smart"] | None = None
    """Form of .beton files' images: raw, jpg or smart.
    raw is plain pixels, the fastest. jpg is JPEG, a tenth of the size. smart is plain pixels up to 96 x 96, and JPEG
    above. Null: by the data set. That is smart for imagenet and folders, else raw."""
    store_size: int | None = setting(None, STORED_SIDE)
    """Longest side of stored images; 0: any.
    In pixels; larger images are shrunk. Null: by the data set. That is 500 for imagenet and folders, 512 for people,
    else 0."""
    store_quality: int | None = setting(None, Rule("1 to 100", lambda n: 1 <= n <= 100))
    """JPEG quality in .beton files, 1 to 100.
    Null: 90."""
    grey_range: tuple[float, float] | None = setting(None, GREY_RANGE)
    """Black and white of greyscale images beyond 8 bits.
    0,4095 is for 12 bits that are saved in 16. 32-bit and signed integers must be given theirs. Null: by type. That is
    0 and 65535 of 16 bits, 0 and 1 of floats."""
    skip_bad: bool = False
    """Leave unreadable images out, instead of stopping."""
