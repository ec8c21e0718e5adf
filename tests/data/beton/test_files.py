import shutil

import pytest

from fastdhm.data.beton.files import ensure
from fastdhm.data.beton.settings import ImageSettings
from fastdhm.data.sources.load import load_sources
from fastdhm.errors import UserError


def test_files_that_lack_bad_images_serve_no_run_that_did_not_ask_for_it(bad_root, tmp_path):
    root, settings = tmp_path / "images", ImageSettings.for_dataset("folder:x")
    shutil.copytree(bad_root, root)
    source, options = load_sources(f"folder:{root}", tmp_path)[0], {"workers": 1, "say": lambda _: None}
    place = (tmp_path, f"folder:{root}", "train", settings)
    ensure(source, *place, skip_bad=True, **options)
    with pytest.raises(UserError, match="3 of 31 images cannot be read"):
        ensure(source, *place, **options)
    with pytest.raises(UserError, match="lacks 3 images that could not be read, and --skip-bad is not given"):
        ensure(None, *place, **options)
    assert ensure(None, *place, skip_bad=True, **options)
