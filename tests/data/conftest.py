"""Small folders of images, among them what real folders hold: every odd mode and size."""

import shutil

import numpy as np
import pytest
from PIL import Image

from fastdhm.data.beton.files import beton_path, build
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.loaders.ffcv_library import why_not
from fastdhm.data.sources.load import load_sources


@pytest.fixture
def ffcv():
    """For tests of FFCV alone: skipped, with the reason, where it is not."""
    if why_not():
        pytest.skip(why_not())


@pytest.fixture
def kind(request):
    """A loader's kind, as a parameter; ffcv is skipped, with the reason, where it is not."""
    if request.param == "ffcv" and why_not():
        pytest.skip(why_not())
    return request.param


def ramp(height, width, seed=0):
    """A picture whose red is its column and whose green is its row, so that a crop's place can be read off it."""
    y, x = np.mgrid[:height, :width]
    blue = np.full_like(x, 40 * seed % 256)
    return np.stack([x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), blue], axis=2).astype(np.uint8)


def save_odd_images(folder):
    """One file for each kind of image that is not plain RGB."""
    folder.mkdir(parents=True)
    image = Image.fromarray(ramp(30, 40))
    image.save(folder / "plain.png")
    image.convert("L").save(folder / "grey.png")
    image.convert("LA").save(folder / "grey-alpha.png")
    image.convert("P").save(folder / "palette.png")
    image.convert("1").save(folder / "bits.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("RGBA").save(folder / "alpha.webp", lossless=True)
    image.convert("P").save(folder / "transparent.png", transparency=3)
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(folder / "sixteen-bit.png")
    Image.fromarray(np.linspace(0, 1, 1200, dtype=np.float32).reshape(30, 40)).save(folder / "float.tiff")
    frames = [image.convert("P"), image.rotate(90).convert("P")]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    image.save(folder / "turned.jpg", exif=exif, quality=95)
    image.resize((1, 1)).save(folder / "one-pixel.png")
    image.resize((900, 2)).save(folder / "wide.JPEG")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image either")


@pytest.fixture(scope="session")
def odd_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    for split in ("train", "val"):
        for name in ("cats", "dogs"):
            save_odd_images(root / split / name)
    return root


@pytest.fixture(scope="session")
def photo_root(tmp_path_factory):
    """Lossless pictures of many shapes, large enough to be cropped and shrunk."""
    root = tmp_path_factory.mktemp("photos")
    shapes = [(80, 80), (60, 110), (130, 70), (96, 64), (200, 90), (64, 150)]
    for split, count in (("train", 24), ("val", 10)):
        for k, name in enumerate(("a", "b")):
            (root / split / name).mkdir(parents=True)
            for i in range(count // 2):
                Image.fromarray(ramp(*shapes[i % 6], seed=k)).save(root / split / name / f"{i:02}.png")
    return root


@pytest.fixture
def bad_root(odd_root, tmp_path):
    """The odd images and, among them, three broken ones."""
    root = tmp_path / "bad"
    shutil.copytree(odd_root, root)
    Image.fromarray(ramp(64, 64)).save(root / "train/cats/cut.jpg")
    whole = (root / "train/cats/cut.jpg").read_bytes()
    (root / "train/cats/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train/dogs/text.jpg").write_text("this is text")
    (root / "train/dogs/empty.png").write_bytes(b"")
    return root


@pytest.fixture
def bad_names():
    return "cut.jpg", "text.jpg", "empty.png"


@pytest.fixture(scope="session")
def build_raw(tmp_path_factory):
    """``build_raw(dataset) -> (train source, its beton)``: plain pixels, full size, built once."""
    built = {}

    def get(dataset, settings=None):
        settings = settings or ImageSettings()
        if (dataset, settings) not in built:
            train, _ = load_sources(dataset, tmp_path_factory.mktemp("nothing"))
            path = beton_path(tmp_path_factory.mktemp("built"), dataset, "train", settings)
            build(train, path, settings, workers=1, progress=False)
            built[dataset, settings] = train, path
        return built[dataset, settings]

    return get
