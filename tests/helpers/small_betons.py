"""A small ``.beton`` file and the settings of one."""

from fastdhm.data.beton.files import build
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.sources.synthetic import SyntheticSource

RAW, JPG = ImageSettings(), ImageSettings(max_resolution=60, mode="jpg", quality=90)


def build_synthetic(folder, count=40, **options):
    path = folder / "built" / "train.beton"
    build(SyntheticSource("train", count), path, RAW, workers=1, progress=False, **options)
    return path


def names(folder):
    return sorted(p.name for p in folder.iterdir())
