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


def write_tiff(path, array, bits, sample_format=1, photometric=1, order="<"):
    """One strip, uncompressed, of any type."""
    height, width = array.shape
    data = array.tobytes()
    tags = [
        (256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    entries = [
        struct.pack(f"{order}HHI", tag, kind, 1) + struct.pack(f"{order}{'H2x' if kind == 3 else 'I'}", value)
        for tag, kind, value in tags
    ]
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(tags)) + b"".join(entries) + struct.pack(f"{order}I", 0)
    path.write_bytes(magic + struct.pack(f"{order}I", 8 + len(data)) + data + directory)
    return path
