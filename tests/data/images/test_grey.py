"""Greyscale of more than 8 bits."""

import struct

import numpy as np
import pytest
from pictures import write_png, write_tiff
from PIL import Image, TiffImagePlugin

from fastdhm.data.images.grey import DeepPictures
from fastdhm.data.images.read import read_image
from fastdhm.errors import UserError


def levels(path, grey_range=None):
    return np.asarray(read_image(path, grey_range))[..., 0].ravel().tolist()


def save_16(path, *values):
    array = np.array([values], np.uint16)
    if path.suffix == ".pgm":
        path.write_bytes(b"P5 %d 1 65535\n" % len(values) + array.astype(">u2").tobytes())
    elif path.name == "big-endian.tiff":
        write_tiff(path, array.astype(">u2"), 16, order=">")
    else:
        Image.fromarray(array).save(path)
    return path


FILES_16 = ["t.png", "t.tiff", "big-endian.tiff", "t.pgm"]


@pytest.mark.parametrize("name", FILES_16)
def test_16_bits_keep_their_high_byte_whatever_else_is_in_the_picture(tmp_path, name):
    some = [0, 255, 256, 257, 4095, 32768, 65535]
    assert levels(save_16(tmp_path / name, *some)) == [0, 0, 1, 1, 15, 128, 255]
    for value in some:
        assert levels(save_16(tmp_path / name, value, value)) == [value >> 8] * 2


@pytest.mark.parametrize("name", FILES_16)
def test_12_bits_saved_in_16_keep_their_levels_by_a_range(tmp_path, name):
    path = save_16(tmp_path / name, *range(0, 4096, 16), 5000)
    found = levels(path, (0, 4095))
    assert len(set(found)) == 256
    assert found == sorted(found)
    assert levels(save_16(tmp_path / name, 2048), (0, 4095)) == [128]


def test_12_bits_that_the_file_declares_need_no_range(tmp_path):
    packed = np.array([[0x80, 0x0F, 0xFF]], np.uint8)  # 0x800, 0xFFF
    path = tmp_path / "t.tiff"
    write_tiff(path, packed, 12)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<HHI", 256, 4, 1)) + 8] = 2  # pixels, of a byte and a half
    path.write_bytes(data)
    assert levels(path) == [128, 255]


@pytest.mark.parametrize("maxval", [1023, 4095, 16383])
def test_a_pgm_says_its_own_maximum(tmp_path, maxval):
    values = np.array([[0, maxval // 2, maxval]], ">u2")
    (tmp_path / "t.pgm").write_bytes(b"P5 3 1 %d\n" % maxval + values.tobytes())
    assert levels(tmp_path / "t.pgm") == [0, 127, 255]


def test_white_is_zero_in_16_bits_too(tmp_path):
    path = write_tiff(tmp_path / "t.tiff", np.array([[0, 65535, 256]], "<u2"), 16, photometric=0)
    assert levels(path) == [255, 0, 254]
    assert levels(path, (0, 512)) == [255, 0, 127]


def test_floats_count_from_0_to_1_and_a_little_more_changes_nothing(tmp_path):
    for values, expected in (
        ([0, 0.25, 0.5, 1], [0, 64, 128, 255]),
        ([0, 0.25, 0.5, 1.01], [0, 64, 128, 255]),
        ([-0.01, 0.25, np.nan, np.inf], [0, 64, 0, 255]),
        ([0.5], [128]),
        ([0.001], [0]),
    ):
        Image.fromarray(np.array([values], np.float32)).save(tmp_path / "t.tiff")
        assert levels(tmp_path / "t.tiff") == expected


WIDE = {
    "float": np.array([[0, 2047.5, 4095]], "<f4"),
    "int32": np.array([[0, 2048, 4095]], "<i4"),
    "uint32": np.array([[0, 2048, 4095]], "<u4"),
    "int16": np.array([[-5, 2048, 4095]], "<i2"),
}


@pytest.mark.parametrize("kind", WIDE)
def test_types_without_a_range_need_one_and_then_keep_relative_brightness(tmp_path, kind):
    array = WIDE[kind]
    formats = {"f": 3, "i": 2, "u": 1}
    path = write_tiff(tmp_path / "t.tiff", array, 8 * array.itemsize, formats[array.dtype.kind])
    with pytest.raises(UserError, match=r"t.tiff: .* to 4095, but .*--grey-range LOW,HIGH"):
        read_image(path)
    assert levels(path, (0, 4095)) == [0, 128, 255]
    assert levels(path, (-4095, 4095)) == [127 if kind == "int16" else 128, 191, 255]


def test_signed_bytes_are_not_taken_for_unsigned(tmp_path):
    path = write_tiff(tmp_path / "t.tiff", np.array([[-128, 0, 127]], dtype=np.int8), 8, 2)
    with pytest.raises(UserError, match=r"8-bit signed integer grey from -128 to 127.*--grey-range LOW,HIGH"):
        read_image(path)
    assert levels(path, (-128, 127)) == [0, 128, 255]


def test_unsigned_integers_of_32_bits_are_not_negative(tmp_path):
    path = write_tiff(tmp_path / "t.tiff", np.array([[0, 2**31, 2**32 - 1]], "<u4"), 32)
    assert levels(path, (0, 2**32 - 1)) == [0, 128, 255]


@pytest.mark.parametrize("name", ["smallest", "largest", "both"])
def test_what_a_writer_says_of_a_pictures_extremes_is_not_looked_at(tmp_path, name):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if name != "largest":
        tags[280] = 100
    if name != "smallest":
        tags[281] = 4095
    Image.fromarray(np.array([[256, 4095]], np.uint16)).save(tmp_path / "t.tiff", tiffinfo=tags)
    assert levels(tmp_path / "t.tiff") == [1, 15]


def test_colours_of_16_bits_a_channel_keep_their_high_byte(tmp_path):
    row = struct.pack(">6H", 255, 256, 65535, 4096, 32768, 511)
    assert np.asarray(read_image(write_png(tmp_path / "t.png", [row], 2, 16))).ravel().tolist() == [
        0,
        1,
        255,
        16,
        128,
        1,
    ]


def test_what_is_known_of_deep_pictures_is_said(tmp_path):
    def said(given, *pictures):
        deep = DeepPictures()
        for values in pictures:
            deep.note(read_image(save_16(tmp_path / "t.png", *values)))
        deep.note(read_image(save_8(tmp_path / "t.png")))
        return deep.said(given)

    dark = said(None, [5, 4095], [9, 3000])
    assert "2 images of 16-bit grey" in dark
    assert "the largest value is 4,095. To scale them from 12 bits, give --grey-range 0,4095" in dark
    assert "--grey-range" not in said(None, [60_000], [5])
    assert "scaled from 0 (black) to 4095 (white)" in said((0, 4095), [5])
    assert said(None) is None


def save_8(path):
    Image.new("L", (4, 4)).save(path)
    return path
