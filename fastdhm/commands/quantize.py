"""An ONNX network in int8, by onnxruntime's own quantizer, and the errors of both on the validation images.

Legend: B batch, C channels, H height, W width, K classes.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fastdhm.config import TrainConfig
from fastdhm.data import LoadedData
from fastdhm.data.loaders.loader import Loader
from fastdhm.engine.build import open_data
from fastdhm.engine.evaluate import count_correct
from fastdhm.errors import UserError
from fastdhm.system.console import Console

CALIBRATION = 512  # training images whose activations set the ranges
Inputs = Callable[[Tensor], Tensor]  # uint8 images -> what the network takes


class _Calibration:
    """The images as onnxruntime asks for them, a batch at a time."""

    def __init__(self, batches: Iterator[Tensor]):
        self.batches = batches

    def get_next(self) -> dict | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy()}


def quantized(data: bytes, config: TrainConfig, inputs: Inputs, console: Console) -> tuple[bytes, str]:
    """The network ``data`` with int8 weights and activations, and what a person is told of it.

    The ranges of the activations are those of training images of the run's data set.

    Raises:
        ValueError: onnxruntime cannot quantize it.
    """
    with closing(open_data(config, console)) as opened, _telling():
        made = _quantize(data, opened, inputs)
        before, after = (top1_error(network, opened.val, inputs) for network in (data, made))
    images = f"{opened.val.num_samples:,} validation images"
    told = f"error on {images}: {before:.2f}% in float32, {after:.2f}% in int8"
    return made, f"{told}; {len(data) / 2**20:.1f} MiB became {len(made) / 2**20:.1f}"


@contextmanager
def _telling() -> Iterator[None]:
    """What onnxruntime raises, in a line; errors of the images, the disk or the memory are as they are."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:  # its own errors have no other base
        raise UserError(f"onnxruntime cannot quantize this network: {' '.join(str(error).split())[:200]}") from error


def _quantize(data: bytes, opened: LoadedData, inputs: Inputs) -> bytes:
    import onnxruntime
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    logging.getLogger().addFilter(_no_advice)  # on pre-processing, which is done here
    try:
        with tempfile.TemporaryDirectory() as folder:
            ready, made = Path(folder, "ready.onnx"), Path(folder, "int8.onnx")
            options = onnxruntime.SessionOptions()
            basic = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC  # batch norms go into convolutions
            options.graph_optimization_level = basic
            options.optimized_model_filepath = str(ready)
            onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            quantize_static(
                str(ready), str(made), _Calibration(_training_images(opened, inputs)), per_channel=True,
                quant_format=QuantFormat.QDQ, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
            return made.read_bytes()
    finally:
        logging.getLogger().removeFilter(_no_advice)


def _no_advice(record: logging.LogRecord) -> bool:
    return "pre-processing before quantization" not in record.getMessage()


def _training_images(opened: LoadedData, inputs: Inputs) -> Iterator[Tensor]:
    left = CALIBRATION
    with opened.train.epoch(0) as batches:
        for batch in batches:
            yield inputs(batch.image_BHWC.cpu()[:left])
            left -= len(batch.target_B)
            if left <= 0:
                return


def top1_error(network: bytes, loader: Loader, inputs: Inputs) -> float:
    """Top-1 error in percent, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    correct = 0.0
    with loader.epoch(0) as batches:
        for batch in batches:
            logits_BK = torch.from_numpy(session.run(None, {"images": inputs(batch.image_BHWC.cpu()).numpy()})[0])
            correct += float(count_correct(logits_BK[None], batch.target_B.cpu(), 1))
    return 100 * (1 - correct / loader.num_samples)
