"""Photographs by SPDL: threads that decode, crop and resize by FFmpeg, as its documentation shows. No processes.

Legend: B batch, H height, W width, C channels.
"""

import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.sources.folder import FolderSource


def why_no_spdl(source: FolderSource) -> str | None:
    """What is missing for SPDL to read the first image, or None."""
    try:
        import spdl.io

        spdl.io.load_image(str(source.path(0)))
    except (ImportError, RuntimeError) as error:  # FFmpeg is loaded at the first call
        missing = "SPDL is not installed: pip install spdl"
        return missing if isinstance(error, ImportError) else "SPDL finds no FFmpeg: apt-get install libavdevice-dev"
    finally:  # it takes this signal with a handler of its own
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return None


def spdl_batches(source: FolderSource, config: TrainConfig, workers: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of random crops as bytes, ``[B, H, W, C]``, and their labels."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    height, width = height_width(config.image_size)
    order_N = np.random.default_rng(seed).permutation(len(source))

    def decoded(i: int) -> tuple[Any, int]:
        packets = spdl.io.demux_image(str(source.path(i)))
        size = torch.empty(1).expand(packets.height, packets.width)
        y, x, h, w = RandomResizedCrop.get_params(size, (0.08, 1.0), (3 / 4, 4 / 3))
        flip = "hflip," if config.flip and torch.rand(()) < 0.5 else ""
        wanted = f"crop={w}:{h}:{x}:{y}:exact=1,{flip}scale={width}:{height}:flags=bilinear,format=pix_fmts=rgb24"
        return spdl.io.decode_packets(packets, filter_desc=wanted), int(source.target_N[i])

    def stacked(images: list[tuple[Any, int]]) -> tuple[Tensor, Tensor]:
        frames, targets = zip(*images, strict=True)
        return spdl.io.to_torch(spdl.io.convert_frames(list(frames))), torch.tensor(targets)

    builder = PipelineBuilder().add_source(order_N.tolist()).pipe(decoded, concurrency=workers)
    pipeline = builder.aggregate(config.batch_size).pipe(stacked).add_sink().build(num_threads=workers, max_failures=0)
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()
