"""How ``.beton`` files keep images."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from fastdhm.data.images.grey import GreyRange
from fastdhm.data.sources.source import is_reid
from fastdhm.errors import UserError

MODES = ("raw", "jpg", "smart")
SMART_PIXELS = 96 * 96  # in JPEG such an image would lose more of what is in it than of its bytes


@dataclass(frozen=True)
class ImageSettings:
    """How images are stored."""

    max_resolution: int | None = None
    """Longer side in pixels above which an image is shrunk; None keeps every size."""
    mode: Literal["raw", "jpg", "smart"] = "raw"
    """Plain pixels, which load fastest; JPEG, which is some ten times smaller; or, smart, plain pixels for images of up
    to 96 x 96 pixels and JPEG for larger ones."""
    quality: int = 90
    """Of the JPEG, 1 to 100."""
    grey_range: GreyRange | None = None
    """What is black and white in deep greyscale, see ``grey``."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"image mode '{self.mode}' is not known; choose {', '.join(MODES)}")
        if self.max_resolution is not None and self.max_resolution < 1:
            raise UserError(f"maximum resolution {self.max_resolution} is not a positive number of pixels")
        low, high = self.grey_range or (0, 1)
        if not -math.inf < low < high < math.inf:
            raise UserError(f"grey range {low:g} to {high:g}: the second has to be above the first")
        if not 1 <= self.quality <= 100:
            raise UserError(f"JPEG quality {self.quality} is not between 1 and 100")

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
        """Photographs as FFCV's ImageNet recipes store them, small images as they are, but for what is given.

        ``store`` is the mode; ``size`` the maximum resolution, 0 for none.

        Pictures of people are small and were JPEG before: plain pixels lose nothing again. Market-1501, all splits,
        takes 0.9 GB so. The limit is for folders of larger ones, at twice the height that networks are trained at.
        """
        usual = cls()
        if is_reid(dataset):
            usual = cls(max_resolution=512)
        elif dataset == "imagenet" or dataset.startswith("folder:"):
            usual = cls(max_resolution=500, mode="smart")
        if quality is not None and (store or usual.mode) == "raw":
            raise UserError(f"store quality {quality}: plain pixels have none; it is for --store jpg or smart")
        given = {"mode": store, "max_resolution": size, "quality": quality, "grey_range": grey_range}
        chosen = dataclasses.replace(usual, **{name: value for name, value in given.items() if value not in (None, 0)})
        return dataclasses.replace(chosen, max_resolution=None) if size == 0 else chosen

    def stores_raw(self, height: int, width: int) -> bool:
        """Whether an image of that size becomes plain pixels."""
        return self.mode == "raw" or (self.mode == "smart" and height * width <= SMART_PIXELS)

    @property
    def tag(self) -> str:
        """A short name for a folder: ``raw``, ``jpg90-500px``, ``raw-grey0to4095``."""
        mode = self.mode if self.mode == "raw" else f"{self.mode}{self.quality}"
        size = "" if self.max_resolution is None else f"-{self.max_resolution}px"
        grey = "" if self.grey_range is None else "-grey{:.9g}to{:.9g}".format(*self.grey_range)
        return f"{mode}{size}{grey}"
