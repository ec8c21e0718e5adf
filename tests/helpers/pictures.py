"""Files of pictures such as Pillow reads and does not write."""

import struct
import zlib


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_png(path, pixels, colour, bits, *chunks):
    """A PNG such as Pillow does not write: ``pixels`` are its bytes, a row each."""
    rows = b"".join(b"\0" + row for row in pixels)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    width = len(pixels[0]) * 8 // (bits * samples)
    header = struct.pack(">IIBBBBB", width, len(pixels), bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def write_tiff(path, array, bits, sample_format=1, photometric=1, order="<", more=()):
    """Uncompressed, of any type: [height, width], [height, width, samples], or [planes, height, width] if ``more``,
    which are further tags, says so."""
    planes = len(array) if (284, 2) in more else 1
    height, width = array.shape[1:] if planes > 1 else array.shape[:2]
    samples = planes if planes > 1 else array[0, 0].size
    data, count = array.tobytes(), array.nbytes // planes
    tags = [
        (256, width), (257, height), (258, (bits,) * samples), (259, 1), (262, photometric), (273, None),
        (277, samples), (278, height), (279, (count,) * planes), (339, (sample_format,) * samples), *more,
    ]  # fmt: skip
    tags = sorted((tag, value if isinstance(value, tuple) else (value,)) for tag, value in tags)
    beside, after = b"", 8 + 2 + 12 * len(tags) + 4
    far = sum(4 * len(value) for _, value in tags if len(value) > 1) + 4 * planes * (planes > 1)
    entries = b""
    for tag, value in tags:
        if tag == 273:
            value = tuple(after + far + i * count for i in range(planes))
        wide = tag in (256, 257, 273, 278, 279)
        packed = struct.pack(f"{order}{len(value)}{'I' if wide else 'H'}", *value).ljust(4, b"\0")
        head = struct.pack(f"{order}HHI", tag, 4 if wide else 3, len(value))
        if len(packed) > 4:
            entries += head + struct.pack(f"{order}I", after + len(beside))
            beside += packed
        else:
            entries += head + packed
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}IH", 8, len(tags)) + entries + struct.pack(f"{order}I", 0)
    path.write_bytes(magic + directory + beside.ljust(far, b"\0") + data)
    return path
