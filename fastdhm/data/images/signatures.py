"""Recognises, by its first bytes, a file that has the suffix of an image but cannot be read as one."""

from __future__ import annotations

CONVERT = "which cannot be read: convert it to JPEG or PNG"
KNOWN = (
    (0, b"version https://git-lfs", "a Git LFS pointer: fetch the image with 'git lfs pull'"),
    (0, b"/annex/objects", "a git-annex pointer: fetch the image with 'git annex get'"),
    (4, b"ftypheic", f"a HEIC image, {CONVERT}"),
    (4, b"ftypheix", f"a HEIC image, {CONVERT}"),
    (4, b"ftypmif1", f"a HEIF image, {CONVERT}"),
    (4, b"ftypavif", f"an AVIF image, {CONVERT}"),
    (4, b"ftypavis", f"an AVIF image, {CONVERT}"),
    (4, b"ftyp", "a video"),
    (0, b"\0\0\0\x0cJXL ", f"a JPEG XL image, {CONVERT}"),
    (0, b"\xff\x0a", f"a JPEG XL image, {CONVERT}"),
    (0, b"\0\0\0\x0cjP  ", f"a JPEG 2000 image, {CONVERT}"),
    (0, b"\xff\x4f\xff\x51", f"a JPEG 2000 image, {CONVERT}"),
    (0, b"8BPS", f"a Photoshop image, {CONVERT}"),
    (128, b"DICM", f"a DICOM image, {CONVERT}"),
    (0, b"\x76\x2f\x31\x01", f"an OpenEXR image, {CONVERT}"),
    (0, b"<svg", f"an SVG drawing, {CONVERT}"),
    (0, b"%PDF", "a PDF"),
    (0, b"%!PS", "PostScript"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"\x00\x05\x16\x07", "an AppleDouble file, which macOS writes beside another file"),
    (0, b"<!doctype html", "a web page: the download failed"),
    (0, b"<html", "a web page: the download failed"),
    (0, b"<?xml", "XML"),
    (0, b"{", "JSON or text"),
)


def what_it_is(head: bytes) -> str:
    """What a file that begins with ``head`` is."""
    if not head.strip(b"\0"):
        return "it holds only zeros, as after an interrupted copy"
    for at, magic, what in KNOWN:
        if head[at : at + len(magic)].lower() == magic.lower():
            return f"it is {what}"
    return "it is text" if head.isascii() and b"\0" not in head else "its format is unknown"
