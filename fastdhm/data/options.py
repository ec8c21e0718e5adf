"""How images are read, cut and put into batches: said once for a run, whichever of its splits is opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from fastdhm.data.beton.settings import ImageSettings
    from fastdhm.data.images.grey import GreyRange
    from fastdhm.data.loaders.crops import Crop, ImageSize
    from fastdhm.data.loaders.loader import Kind, LoaderOptions


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How the images of a run are read; :meth:`for_training` and :meth:`for_judging` say what each loader takes."""

    loader: Kind | Literal["auto"] = "auto"
    """resident holds all images on ``device``, ffcv reads ``.beton`` files, torch the images themselves. auto holds
    what needs no resizing and takes at most 2 GiB and a quarter of the memory, else takes ffcv where it is installed.
    """
    batch_size: int
    """Of training."""
    eval_batch_size: int | None = None
    """Of what a network is judged on; None: training's."""
    image_size: ImageSize
    """What comes out: the side of a square, or (height, width), in pixels."""
    crop: Crop
    """Training's; a network is judged on the whole image where training stretches it, else on the centre."""
    crop_ratio: float = 1.0
    """Side of the validation crop, relative to the largest centre crop."""
    seed: int = 0
    workers: int | None = None
    """Threads (ffcv) or processes (torch); None: one per processor."""
    device: str = "cpu"
    """Where a resident loader holds the images."""
    share: tuple[int, int] = (0, 1)
    """Which process of how many this is."""
    accumulate: int = 1
    """Parts a training batch is cut into."""
    settings: ImageSettings | None = None
    """Of the ``.beton`` files; None: the data set's usual ones."""
    grey_range: GreyRange | None = None
    """For every loader, what is black and white in deep greyscale, see ``images.grey``."""
    skip_bad: bool = False
    """Leave images out that cannot be read, and do not stop at the first."""
    hold_out: bool = False
    """Of a re-identification set, keep the validation pictures out of training."""
    repeats: int = 1
    """Of training, show each sample of an epoch so often."""
    balanced: bool = False
    """Of training, show as many samples of every class in an epoch: see ``order.balanced_order``."""
    subset: int | None = None
    """Train on that many images, the same for every seed: see ``subset.balanced_subset``."""

    def stored(self, dataset: str) -> ImageSettings:
        """How the ``.beton`` files of ``dataset`` store its images."""
        from fastdhm.data.beton.settings import ImageSettings

        return replace(self.settings or ImageSettings.for_dataset(dataset), grey_range=self.grey_range)

    def for_training(self) -> LoaderOptions:
        """Whole batches in the order that is drawn for each epoch."""
        whole = {"shuffle": True, "drop_last": True, "parts": self.accumulate}
        copies = {"repeats": self.repeats, "balanced": self.balanced}
        return self._loader(self.batch_size, crop=self.crop, subset=self.subset, **whole, **copies)

    def for_judging(self) -> LoaderOptions:
        """Every sample, in order."""
        from fastdhm.data.loaders.crops import evaluation_crop

        batch_size = self.batch_size if self.eval_batch_size is None else self.eval_batch_size
        return self._loader(batch_size, crop=evaluation_crop(self.crop))

    def _loader(self, batch_size: int, **how) -> LoaderOptions:
        from fastdhm.data.loaders.loader import LoaderOptions

        return LoaderOptions(
            batch_size=batch_size, image_size=self.image_size, crop_ratio=self.crop_ratio, seed=self.seed,
            workers=self.workers, device=self.device, share=self.share, **how,
        )  # fmt: skip
