"""Batches on their way to the device, one ahead of the step that uses them.

Legend: B batch, H height, W width, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from fastdhm.data.loaders.loader import Batch


def copied_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """``batches`` on ``device``, in order; on a CPU, or if they are on ``device`` already, they are passed through.

    On a GPU each is copied on a stream of its own while the step of the one before computes, and the host waits for
    neither: the step's stream does, for the copy. The copy overlaps where the batch is in page-locked memory.
    """
    if device.type != "cuda":
        return batches
    return _ahead(batches, device)


def _ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    stream, ahead = _copy_stream(device), None
    for batch in batches:
        if batch.image_BHWC.device.type == "cuda":
            yield batch
            continue
        with torch.cuda.stream(stream):
            copy = batch.to(device)
        copied = stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copy, copied
    if ahead is not None:
        yield _arrived(*ahead)


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device and all epochs: torch keeps the memory that was freed on a stream for that stream alone."""
    return torch.cuda.Stream(device)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    computing = torch.cuda.current_stream(batch.image_BHWC.device)
    computing.wait_event(copied)
    for tensor in batch.tensors():
        tensor.record_stream(computing)  # its memory is not the copying stream's to reuse before the step is through
    return batch
