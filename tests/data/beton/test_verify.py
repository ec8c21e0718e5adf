"""Every image of a .beton file is read again and compared."""

import pytest
from small_betons import JPG, RAW

from fastdhm.data.beton import format as beton_format
from fastdhm.data.beton.files import build, check, verify
from fastdhm.data.sources.load import load_sources
from fastdhm.errors import UserError


def test_damaged_pixels_are_found_by_verify(tmp_path, photo_root):
    train, _ = load_sources(f"folder:{photo_root}", tmp_path)
    for settings, message in ((JPG, "images cannot be decoded: sample 0"), (RAW, "its checksum differs")):
        path = tmp_path / settings.tag / "train.beton"
        build(train, path, settings, workers=1, progress=False)
        with path.open("r+b") as file:
            file.seek(int(beton_format.read_index(path).allocation_N["ptr"][0]))
            file.write(b"\0" * 50)
        check(path)
        with pytest.raises(UserError, match=message):
            verify(path, progress=False)
