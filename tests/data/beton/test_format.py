"""The file's format is FFCV's."""

import numpy as np
import pytest
import torch
from small_betons import build_synthetic

from fastdhm.data.beton import format as beton_format
from fastdhm.data.beton.files import check, verify
from fastdhm.data.loaders.ffcv_library import load
from fastdhm.data.sources.synthetic import SyntheticSource
from fastdhm.errors import UserError


def test_types_are_ffcvs(ffcv):
    types = load().types
    assert types.HeaderType == beton_format.HEADER
    assert types.FieldDescType == beton_format.FIELD
    assert types.ALLOC_TABLE_TYPE == beton_format.ALLOCATION
    assert types.get_metadata_type([types.RGBImageField(), types.IntField()]) == beton_format.SAMPLE
    assert types.CURRENT_VERSION == beton_format.FFCV_VERSION
    assert [types.TYPE_ID_HANDLER[number].__name__ for _, number in beton_format.FIELDS] == [
        "RGBImageField",
        "IntField",
    ]
    assert beton_format.MODES["jpg"] == load().JPG


def test_ffcvs_own_loader_reads_the_file(ffcv, tmp_path):
    path = build_synthetic(tmp_path)
    threads = torch.get_num_threads()
    loader = load().Loader(str(path), batch_size=40, num_workers=1, drop_last=False)
    ((images, targets),) = [tuple(x.clone() for x in batch) for batch in loader]
    torch.set_num_threads(threads)
    source = SyntheticSource("train", 40)
    assert np.array_equal(images.numpy(), source.pixels(np.arange(40)))
    assert np.array_equal(targets.numpy()[:, 0], source.target_N)


def test_images_that_do_not_fit_a_page_start_the_next(monkeypatch, tmp_path):
    monkeypatch.setattr(beton_format, "PAGE_BYTES", 8192)
    path = build_synthetic(tmp_path)
    index = beton_format.read_index(path)
    first, last = index.allocation_N["ptr"], index.allocation_N["ptr"] + index.allocation_N["size"] - 1
    assert (first // 8192 == last // 8192).all()
    verify(path, progress=False)


def test_ffcv_version_in_the_file_is_checked(tmp_path):
    path = build_synthetic(tmp_path)
    with path.open("r+b") as file:
        file.write(b"\x07\x00")
    with pytest.raises(UserError, match="not a .beton file of version 2"):
        check(path)
