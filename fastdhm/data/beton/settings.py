"""How ``.beton`` files store images."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from fastdhm.data.images.grey import GreyRange
from fastdhm.data.sources.source import is_reid
from fastdhm.errors import UserError

MODES = ("raw", "jpg", "smart")
SMART_PIXELS = 96 * 96  # JPEG would cost such a small image much quality and save few bytes


@dataclass(frozen=True)
class ImageSettings:
    """How images are stored."""

    max_resolution: int | None = None
    """An image with a longer side than this, in pixels, is shrunk to it; None keeps every size."""
    mode: Literal["raw", "jpg", "smart"] = "raw"
    """raw: plain pixels, which load fastest. jpg: JPEG, some ten times smaller. smart: plain pixels for images of up to
    96 x 96 pixels, JPEG for larger ones."""
    quality: int = 90
    """The quality of the JPEGs, 1 to 100."""
    grey_range: GreyRange | None = None
    """The values of black and white in deep greyscale, see ``grey``."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"image mode is {self.mode!r}: must be one of {', '.join(MODES)}")
        if self.max_resolution is not None and self.max_resolution < 1:
            raise UserError(f"maximum resolution is {self.max_resolution}: must be 1 pixel or more")
        low, high = self.grey_range or (0, 1)
        if not -math.inf < low < high < math.inf:
            raise UserError(f"grey range is {low:g} to {high:g}: the second number must be above the first")
        if not 1 <= self.quality <= 100:
            raise UserError(f"JPEG quality is {self.quality}: must be 1 to 100")

    @classmethod
    def for_dataset(
        cls,
        dataset: str,
        *,
        store: str | None = None,
        size: int | None = None,
        quality: int | None = None,
        grey_range: GreyRange | None = None,
    ) -> ImageSettings:
        """The defaults for ``dataset``, with the given values: ``store`` is the mode, ``size`` the maximum resolution.

        A ``size`` of 0 means no maximum. Photographs are stored as FFCV's ImageNet recipes do it; small images are
        stored unchanged.

        The images of re-identification sets are small and were JPEGs: plain pixels lose no more quality. Market-1501
        with all splits takes 0.9 GB that way. The maximum of 512 pixels is for folders of larger images; it is twice
        the height at which networks are trained.
        """
        usual = cls()
        if is_reid(dataset):
            usual = cls(max_resolution=512)
        elif dataset == "imagenet" or dataset.startswith("folder:"):
            usual = cls(max_resolution=500, mode="smart")
        if quality is not None and (store or usual.mode) == "raw":
            raise UserError(f"store quality is {quality}, but plain pixels have none: use --store jpg or smart")
        given: dict[str, Any] = {"mode": store, "max_resolution": size, "quality": quality, "grey_range": grey_range}
        chosen = dataclasses.replace(usual, **{name: value for name, value in given.items() if value not in (None, 0)})
        return dataclasses.replace(chosen, max_resolution=None) if size == 0 else chosen

    def stores_raw(self, height: int, width: int) -> bool:
        """Whether an image of that size is stored as plain pixels."""
        return self.mode == "raw" or (self.mode == "smart" and height * width <= SMART_PIXELS)

    @property
    def tag(self) -> str:
        """A short name for a folder: ``raw``, ``jpg90-500px``, ``raw-grey0to4095``."""
        mode = self.mode if self.mode == "raw" else f"{self.mode}{self.quality}"
        size = "" if self.max_resolution is None else f"-{self.max_resolution}px"
        grey = "" if self.grey_range is None else "-grey{:.9g}to{:.9g}".format(*self.grey_range)
        return f"{mode}{size}{grey}"
