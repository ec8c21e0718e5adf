"""Pictures as people have them: what every kind of file becomes, and what is said of one that cannot be read."""

import contextlib
import io
import os
import struct
import warnings

import numpy as np
import pytest
from pictures import chunk, write_png, write_tiff
from PIL import Image, ImageCms, PngImagePlugin

from fastdhm.data.images import read as images
from fastdhm.data.images.read import read_image
from fastdhm.errors import UserError

WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def values(path, *arguments):
    """Channel 0, after checking that all three are the same."""
    pixels = np.asarray(read_image(path, *arguments))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(
    ("mode", "colour", "key"),
    [
        ("RGB", (0, 0, 0), (0, 0, 0)),
        ("RGB", (9, 200, 3), (9, 200, 3)),
        ("L", 7, 7),
        ("1", 0, 0),
        ("P", 3, 3),
        ("P", 3, bytes([255, 255, 255, 0])),
    ],
    ids=["rgb-black", "rgb", "grey", "bits", "palette-key", "palette-alphas"],
)
def test_a_transparent_colour_lies_on_white(tmp_path, mode, colour, key):
    image = Image.new(mode, (8, 8), colour)
    if mode == "P":
        image.putpalette([5 * value for value in range(48)])
    image.save(tmp_path / "t.png", transparency=key)
    assert (values(tmp_path / "t.png") == 255).all()


def test_a_transparent_deep_grey_lies_on_white_and_its_neighbour_stays(tmp_path):
    rows = [struct.pack(">HHH", 256, 257, 40_000)]
    path = write_png(tmp_path / "t.png", rows, 0, 16, chunk(b"tRNS", struct.pack(">H", 256)))
    assert values(path).tolist() == [[255, 1, 156]]


@pytest.mark.parametrize(("bits", "row"), [(2, 0b00_01_10_11), (4, 0x1F)], ids=["2-bit", "4-bit"])
def test_a_transparent_colour_counts_in_the_files_own_bits(tmp_path, bits, row):
    path = write_png(tmp_path / "t.png", [bytes([row])], 0, bits, chunk(b"tRNS", struct.pack(">H", 1)))
    assert values(path).tolist() == [[0, 255, 170, 255]] if bits == 2 else [[255, 255]]


def test_a_transparent_colour_of_16_bits_a_channel(tmp_path):
    row = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x1134, 0x5678, 0x9ABC)
    path = write_png(tmp_path / "t.png", [row], 2, 16, chunk(b"tRNS", row[:6]))
    assert np.asarray(read_image(path)).tolist() == [[[255, 255, 255], [0x11, 0x56, 0x9A]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_alpha_lies_on_white(tmp_path, mode):
    path = tmp_path / ("t.tiff" if mode == "PA" else "t.png")
    source = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    if mode == "LA":
        source = source.convert("LA")
    if mode == "PA":
        source = Image.new("P", (4, 4), 0)
        source.putpalette([0] * 6)
        source.putalpha(128)
    source.convert(mode).save(path)
    assert Image.open(path).mode == mode
    assert set(values(path).ravel().tolist()) <= {126, 127, 128}


@pytest.mark.parametrize("samples", [2, 4], ids=["La", "RGBa"])
def test_premultiplied_alpha_lies_on_white(tmp_path, samples):
    pixels = np.zeros((4, 4, samples), np.uint8)
    pixels[..., -1] = 128
    path = write_tiff(tmp_path / "t.tiff", pixels, 8, photometric=1 if samples == 2 else 2, more=[(338, 1)])
    try:
        Image.open(path).close()
    except OSError:
        pytest.skip("this Pillow reads no such TIFF")
    assert set(values(path).ravel().tolist()) <= {126, 127, 128}


@pytest.mark.parametrize("mode", ["CMYK", "LAB", "HSV", "RGBX"])
def test_other_colour_spaces_become_rgb(tmp_path, mode):
    source = Image.new("RGB", (4, 4), (250, 20, 20))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        source = ImageCms.profileToProfile(source, *profiles, outputMode="LAB")
    elif mode != "HSV":
        source = source.convert(mode)
    source.save(tmp_path / "t.tiff")
    red, green, blue = read_image(tmp_path / "t.tiff").getpixel((0, 0))
    assert red > 235
    assert max(green, blue) < 40


@pytest.mark.parametrize("order", "<>", ids=["little-endian", "big-endian"])
def test_planes_of_16_bits_keep_their_colours(tmp_path, order):
    colour_3HW = np.arange(3 * 8 * 8).reshape(3, 8, 8)
    write_tiff(tmp_path / "t.tif", (colour_3HW * 257).astype(f"{order}u2"), 16, 1, 2, order, more=[(284, 2)])
    assert (np.asarray(read_image(tmp_path / "t.tif")) == colour_3HW.transpose(1, 2, 0)).all()


@pytest.mark.parametrize("white", [255, 65535])
def test_a_colour_map_that_counts_to_255_is_not_black(tmp_path, white):
    index_HW, unit = np.array([[0, 1], [2, 3]], dtype=np.uint8), white // 255
    red, green, blue = (0, 255, 40, 7), (0, 100, 50, 9), (0, 30, 60, 11)
    colours = [unit * value for channel in (red, green, blue) for value in (*channel, *[0] * 252)]
    write_tiff(tmp_path / "t.tif", index_HW, 8, 1, 3, more=[(320, tuple(colours))])
    assert np.asarray(read_image(tmp_path / "t.tif")).reshape(4, 3).tolist() == list(
        map(list, zip(red, green, blue, strict=True))
    )


@pytest.mark.parametrize("kind", ["bmp", "tiff", "tiff-that-says-alpha"])
def test_zeros_that_nobody_calls_transparency_do_not_make_a_picture_white(tmp_path, kind):
    path, pixel = tmp_path / "t", bytes([10, 20, 30, 0])
    if kind == "bmp":
        header = struct.pack("<IiiHHIIiiII4I", 108, 2, 2, 1, 32, 3, 16, 0, 0, 0, 0, 0xFF, 0xFF00, 0xFF0000, 0xFF << 24)
        data = b"BM" + struct.pack("<IHHI", 138, 0, 0, 122) + header.ljust(108, b"\0") + pixel * 4
        path.write_bytes(data)
    else:
        pixels = np.frombuffer(pixel * 4, dtype=np.uint8).reshape(2, 2, 4)
        write_tiff(path, pixels, 8, 1, 2, more=[(338, 2)] if "alpha" in kind else [])
    wanted = [255] * 3 if "alpha" in kind else [10, 20, 30]
    assert np.asarray(read_image(path)).reshape(4, 3).tolist() == [wanted] * 4


def test_floats_of_64_bits_are_refused_with_what_to_do(tmp_path):
    write_tiff(tmp_path / "t.tif", np.zeros((4, 4)), 64, 3)
    with pytest.raises(UserError, match=r"t\.tif: cannot be decoded: TIFF: its bits .* convert it to 8 bits"):
        read_image(tmp_path / "t.tif")


def test_adobes_inverted_cmyk_is_not_a_negative(tmp_path):
    Image.new("RGB", (8, 8), (250, 20, 20)).convert("CMYK").save(tmp_path / "t.jpg", quality=100)
    red, green, _ = read_image(tmp_path / "t.jpg").getpixel((0, 0))
    assert red > 235
    assert green < 40


@pytest.mark.parametrize("name", ["t.gif", "t.tiff", "t.png", "t.webp"])
def test_the_first_of_several_frames_is_taken(tmp_path, name):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in (WHITE, BLACK))
    first.save(tmp_path / name, save_all=True, append_images=[second])
    assert (values(tmp_path / name) == 255).all()


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("name", ["t.png", "t.jpg", "t.tiff", "deflate.tiff"])
def test_every_orientation_becomes_upright(tmp_path, orientation, name):
    pixels = np.zeros((16, 24), np.uint8)
    pixels[:8, :8] = 255
    turned = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90"}
    turned |= {7: "TRANSVERSE", 8: "ROTATE_270"}
    image = Image.fromarray(pixels)
    if name == "deflate.tiff":
        orientation = min(max(1, orientation), 8)  # libtiff writes no others
    if orientation in turned:
        image = image.transpose(getattr(Image.Transpose, turned[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif, compression="tiff_adobe_deflate" if name == "deflate.tiff" else None)
    upright = read_image(tmp_path / name)
    assert upright.size == (24, 16)
    assert [upright.getpixel(place)[0] > 128 for place in ((2, 2), (20, 2), (2, 13))] == [True, False, False]


@pytest.mark.parametrize("orientation", [1, 6, 9])
def test_a_jpeg_is_decoded_smaller_where_that_is_enough(tmp_path, orientation):
    ramp = np.add.outer(np.arange(301), np.arange(402)) // 3
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "t.jpg", exif=exif, quality=95)
    asked = []

    def read(times):
        return read_image(tmp_path / "t.jpg", shrink=lambda width, height: asked.append((width, height)) or times)

    upright = (301, 402) if orientation == 6 else (402, 301)
    for times, by in ((0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (100, 8)):
        image = read(times)
        assert image.size == tuple(-(-side // by) for side in upright)
        assert image.info.get("whole", image.size) == upright
    assert set(asked) == {upright}
    rest = read_image(tmp_path / "t.jpg").resize(read(4).size, Image.Resampling.BOX)
    assert np.abs(np.asarray(rest, np.int16) - np.asarray(read(4), np.int16)).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_a_picture_that_was_turned_lies_where_it_lies_in_the_whole_one(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    column, row = np.arange(203), np.arange(105)
    pixels = np.stack(np.broadcast_arrays(column, 2 * row[:, None], 0), -1)  # the colour of a pixel is its place
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "t.jpg", exif=exif, quality=98, subsampling=0)
    whole = read_image(tmp_path / "t.jpg")
    for times in (2, 4, 8):
        smaller = read_image(tmp_path / "t.jpg", shrink=lambda width, height, times=times: times)
        assert images.whole_size(smaller) == whole.size and images.times_smaller(smaller) == times
        assert max(smaller.size) == -(-203 // times)
        cut = whole.resize((3, 4), Image.Resampling.BILINEAR, (16, 24, 64, 88))
        found = smaller.resize((3, 4), Image.Resampling.BILINEAR, images.edges(smaller, 16, 24, 48, 64))
        assert np.abs(np.asarray(cut, np.int16) - np.asarray(found, np.int16)).max() <= 2


def test_a_tag_of_a_wrong_type_leaves_a_picture_upright(tmp_path):
    turned, resolution = struct.pack("<HHII", 0x0112, 3, 1, 6), struct.pack("<HHI4s", 0x011A, 2, 3, b"72")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0" + turned + resolution + bytes(4)
    Image.new("RGB", (64, 40)).save(tmp_path / "t.jpg", exif=exif)
    for times in (1, 2):
        image = read_image(tmp_path / "t.jpg", shrink=lambda width, height, times=times: times)
        assert image.size == (40 // times, 64 // times) and images.whole_size(image) == (40, 64)


def test_other_kinds_are_decoded_whole_and_broken_exif_turns_nothing(tmp_path):
    Image.new("RGB", (80, 40)).save(tmp_path / "t.png")
    image = read_image(tmp_path / "t.png", shrink=lambda width, height: 8)
    assert image.size == (80, 40) and "whole" not in image.info
    assert read_image(broken_exif(tmp_path), shrink=lambda width, height: 2).size == (4, 4)


def broken_exif(tmp_path):
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\x01\0\0\0\xff\xff\xff\x7f" * 3
    Image.new("RGB", (8, 8)).save(tmp_path / "t.jpg", exif=exif)
    return tmp_path / "t.jpg"


def test_broken_exif_says_nothing_about_pixels(tmp_path):
    path = broken_exif(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.silence_pillow()
        assert read_image(path).size == (8, 8)


@pytest.mark.parametrize("where", ["text", "compressed-text", "international", "profile", "after-the-pixels"])
def test_a_png_with_more_words_than_pillow_takes_is_whole(monkeypatch, tmp_path, where):
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1 << 20)
    path, much = tmp_path / "t.png", "x" * (2 << 20)
    text = PngImagePlugin.PngInfo()
    if where == "international":
        text.add_itxt("a", much, zip=True)
    elif where != "profile":
        text.add_text("a", much, zip=where != "text")
    options = {"icc_profile": os.urandom(2 << 20)} if where == "profile" else {"pnginfo": text}
    Image.new("RGB", (8, 8), (1, 2, 3)).save(path, **options)
    if where == "after-the-pixels":
        data = path.read_bytes()
        start = data.index(b"zTXt") - 4
        end = data.index(b"IDAT") - 4
        path.write_bytes(data[:start] + data[end:-12] + data[start:end] + data[-12:])
    assert read_image(path).getpixel((0, 0)) == (1, 2, 3)
    assert PngImagePlugin.MAX_TEXT_CHUNK == 1 << 20
    path.write_bytes(path.read_bytes()[:-40])
    if where not in ("after-the-pixels",):
        with pytest.raises(UserError, match="cannot be decoded"):
            read_image(tmp_path / "t.png")


@pytest.mark.parametrize("name", ["t.png", "t.jpg", "t.tiff", "t.gif", "t.bmp", "t.webp"])
def test_pictures_beyond_pillows_limit_are_read(monkeypatch, tmp_path, name):
    Image.new("RGB", (40, 30)).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / name).size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_too_many_pixels_are_named_with_the_limit_and_how_to_lift_it(monkeypatch, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "t.png")
    monkeypatch.setenv("FASTDHM_MAX_PIXELS", "1199")
    with pytest.raises(UserError, match="40 x 30 pixels are more than the limit of 1,199: .*FASTDHM_MAX_PIXELS"):
        read_image(tmp_path / "t.png")
    monkeypatch.setenv("FASTDHM_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="^FASTDHM_MAX_PIXELS is 'many': must be a number of pixels above 0"):
        read_image(tmp_path / "t.png")
    monkeypatch.setenv("FASTDHM_MAX_PIXELS", "1200")
    assert read_image(tmp_path / "t.png").size == (40, 30)


@pytest.mark.parametrize(("name", "size"), [("t.png", (1, 60_000)), ("t.jpg", (60_000, 1)), ("t.tiff", (1, 70_000))])
def test_a_picture_may_be_a_line(tmp_path, name, size):
    Image.new("RGB", size, (9, 9, 9)).save(tmp_path / name)
    assert read_image(tmp_path / name).size == size


def gif_without_frames():
    return b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b"\x3b"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "an empty file"),
        (bytes(1000), "it holds only zeros"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer.*git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC image, which cannot be read: convert it"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"<!DOCTYPE HTML><title>404", "a web page: the download failed"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "it is PostScript"),
        (b"\x00\x05\x16\x07\0\x02\0\0Mac OS X", "AppleDouble"),
        (b"a,b,c\n1,2,3\n", "it is text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cannot be decoded"),
        (gif_without_frames(), "cannot be decoded"),
    ],
    ids=[
        "empty",
        "zeros",
        "git-lfs",
        "heic",
        "jpeg-xl",
        "web-page",
        "postscript",
        "apple-double",
        "text",
        "cut",
        "no-frame",
    ],
)
def test_what_is_no_picture_is_called_by_its_name(tmp_path, data, said):
    (tmp_path / "t.jpg").write_bytes(data)
    with pytest.raises(UserError, match=f"t.jpg: .*{said}"):
        read_image(tmp_path / "t.jpg")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_suffix_that_lies_does_no_harm(tmp_path, kind):
    Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / "t.jpg", kind)
    assert (values(tmp_path / "t.jpg") == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_file_that_is_cut_short_is_refused(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    (tmp_path / "t.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) * 2 // 3])
    with pytest.raises(UserError, match="cannot be decoded"):
        read_image(tmp_path / "t.jpg")


def test_a_file_that_may_not_be_read_is_named_with_the_reason(monkeypatch, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "t.png")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images, "open", refuse, raising=False)
    with pytest.raises(UserError, match="t.png: cannot be read: Permission denied"):
        read_image(tmp_path / "t.png")


def test_nothing_is_written_to_the_terminal_by_broken_files(capfd, tmp_path):
    """libtiff, libjpeg and libpng have messages of their own, from C, that name no file."""
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    images.silence_pillow()
    for name, compression in {"a.jpg": None, "b.tiff": "tiff_lzw", "c.tiff": "jpeg"}.items():
        source.save(tmp_path / name, compression=compression)
        data = bytearray((tmp_path / name).read_bytes())
        for at in range(len(data) // 2, len(data) // 2 + 200, 7):
            data[at] ^= 0x55
        for damaged in (bytes(data), bytes(data[: len(data) // 2])):
            (tmp_path / name).write_bytes(damaged)
            with contextlib.suppress(UserError):
                read_image(tmp_path / name)
    assert capfd.readouterr().err == ""


def test_a_name_of_two_lines_makes_an_error_of_one(tmp_path):
    (tmp_path / "a\nb.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"^\S*/a\\nb.png: cannot be read: an empty file$"):
        read_image(tmp_path / "a\nb.png")
