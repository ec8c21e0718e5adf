"""Batches of an epoch, in an order and with crops that depend only on (seed, epoch): one interface, three loaders.

``ffcv`` reads a ``.beton``; ``torch`` reads the images themselves; ``resident`` holds them all in memory. They give the
same samples in the same batches with the same crop boxes. Where a box needs no resizing, they give the same bytes.
Where it does, FFCV averages areas (OpenCV), and torch uses its antialiased bilinear filter. Both use that filter where
a side of the box grows, and for crops that stretch the image: then they differ by at most one level of 255.
``resident`` takes only what needs no resizing.
Legend: N samples, S of them that are taken, B batch, H height, W width, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from fastdhm.data.loaders.ffcv_library import HOW_TO_GET, why_not
from fastdhm.data.loaders.loader import Kind, Loader, LoaderOptions
from fastdhm.data.sources.subset import balanced_subset
from fastdhm.errors import UserError

if TYPE_CHECKING:
    from fastdhm.data.sources.source import Source


def pick_kind(kind: str) -> tuple[Kind, str]:
    """The loader to use for ``kind``, and why; ``auto`` here is for images that cannot be resident."""
    if kind == "torch":
        return "torch", "asked for"
    if kind == "resident":
        return "resident", "asked for"
    if kind not in ("auto", "ffcv"):
        raise UserError(f"unknown loader '{kind}'; known: auto, resident, ffcv, torch")
    reason = why_not()
    if reason is None:
        return "ffcv", "asked for" if kind == "ffcv" else "FFCV is installed"
    if kind == "ffcv":
        raise UserError(f"loader 'ffcv': {reason}. {HOW_TO_GET}")
    return "torch", reason


def build_loader(
    kind: Kind, options: LoaderOptions, *, source: Source | None = None, beton: Path | None = None
) -> Loader:
    """A loader from the file ``beton`` (``ffcv``), from ``source`` (``torch``), or from either (``resident``)."""
    if options.subset is not None:
        assert source is not None
        samples_S = balanced_subset(source.target_N, len(source.classes), options.subset)
        options = replace(options, samples_S=samples_S)
    if options.balanced:
        assert source is not None
        taken = slice(None) if options.samples_S is None else options.samples_S
        options = replace(options, target_S=source.target_N[taken])
    if kind == "resident":
        from fastdhm.data.loaders.resident_loader import hold

        assert source is not None
        return hold(source, beton, options)
    if kind == "ffcv":
        from fastdhm.data.loaders.ffcv_loader import FfcvLoader

        assert beton is not None
        return FfcvLoader(beton, options)
    from fastdhm.data.loaders.torch_loader import TorchLoader

    assert source is not None
    return TorchLoader(source, options)
