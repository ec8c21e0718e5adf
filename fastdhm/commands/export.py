"""``fastdhm export``: the plain network in a form that other programs run, checked on images before it is written.

Legend: B batch, C channels, H height, W width, K classes.
"""

import copy
import io
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastdhm import models
from fastdhm.config import TrainConfig
from fastdhm.data import open_pictures
from fastdhm.data.augment.transforms import DeviceTransform
from fastdhm.data.loaders.crops import height_width
from fastdhm.engine.build import Trained, check_finite, data_options, load_trained, open_to_judge
from fastdhm.errors import UserError, unknown
from fastdhm.system.console import Console
from fastdhm.system.environment import installed
from fastdhm.system.files import replacing
from fastdhm.system.folders import check_writable
from fastdhm.system.paths import shown

Format = Literal["onnx", "torch-export"]
Runs = Callable[[Tensor], Tensor]  # images -> logits, by the exported network
ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2"}
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch-export": ()}
BATCHES = (1, 3, 17)  # sizes that are checked; none of them is the example's
TOLERANCE = 1e-4  # of the largest logit, or of 1: float32 sums in another order


class Prepared(nn.Module):
    """A network with the normalisation before it: ``uint8 [B, H, W, C]`` to logits ``[B, K]``."""

    def __init__(self, network: nn.Module, transform: DeviceTransform):
        super().__init__()
        self.network = network
        self.gain: Tensor
        self.bias: Tensor
        self.register_buffer("gain", transform.gain_C[:, None, None].clone())
        self.register_buffer("bias", transform.bias_C[:, None, None].clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.permute(0, 3, 1, 2).float() * self.gain + self.bias)


def export(
    path: Path,
    *,
    format: Format = "onnx",
    out: Path | None = None,
    branch: str | None = None,
    preprocess: bool = False,
    images: Path | None = None,
    int8: bool = False,
    console: Console | None = None,
) -> Path:
    """Write the plain network at ``path`` to ``out``, for batches of any size; returns where.

    It is run on images first, in batches of several sizes: its logits must be those of the network.

    Args:
        out: a new file; ``None``: ``network.onnx`` or ``network.pt2`` beside the network, ``network-B1.onnx`` of B1.
        branch: "B0", "B1", ... or "ensemble", of a run or a checkpoint; ``None``: the plain network.
        preprocess: include the normalisation; the input is then uint8 images, ``[B, H, W, C]``.
        images: a folder of images to check on; ``None``: the run's validation images.
        int8: write it with int8 weights and activations instead, with its error beside that of the float32 network.

    Raises:
        ValueError: ``out`` exists or cannot be written, a package is missing, there is no image to check on, or the
            exported network computes something else.
    """
    console = console or Console()
    if format not in ENDINGS:
        raise unknown("format", format, ENDINGS)
    if int8 and format != "onnx":
        raise UserError(f"--int8 is for --format onnx, not {format}: onnxruntime's quantizer makes it")
    missing = [name for name in NEEDED[format] if not installed(name)]
    if missing:
        raise UserError(f"--format {format} needs what is not installed: pip install {' '.join(missing)}")
    name = f"network{f'-{branch}' * bool(branch)}{'.int8' * int8}{ENDINGS[format]}"
    out = out or (path if path.is_dir() else path.parent) / name
    if out.exists():
        raise UserError(f"{shown(out)} is there already: choose another --out, or remove it")
    check_writable(out.parent, "the folder of --out")
    trained = load_trained(path, branch)
    check_finite(trained, path)
    image_BHWC = _some_images(trained.config, images, console)
    transform = DeviceTransform(trained.config.mean, trained.config.std)
    plain = trained.plain.cpu().float().eval()
    module = Prepared(plain, transform).eval() if preprocess else plain

    def as_input(image_BHWC: Tensor) -> Tensor:
        return image_BHWC if preprocess else transform(image_BHWC, torch.arange(len(image_BHWC)), 0).contiguous()

    inputs = as_input(image_BHWC)
    with torch.no_grad():
        make = _as_onnx if format == "onnx" else _as_torch_export
        # a copy: torch.export may replace what a module holds, such as the feature maps of branches
        data, runs = make(copy.deepcopy(module), inputs[:2], _about(trained, preprocess))
        error = _largest_difference(module, runs, inputs)
    said = ""
    if int8:
        from fastdhm.commands.quantize import quantized

        data, said = quantized(data, trained.config, as_input, console)
    with replacing(out) as temporary:
        temporary.write_bytes(data)
    sizes = ", ".join(map(str, BATCHES))
    whose = "before int8, logits differ" if int8 else "logits differ"
    console.print(f"{format}: {out}; {whose} by {error:.1e} at most (batches of {sizes} from {len(inputs)} images)")
    if int8:
        console.print(f"int8: {said}")
    return out


def _some_images(config: TrainConfig, folder: Path | None, console: Console) -> Tensor:
    """As many images as the largest batch to check, uint8 ``[B, H, W, C]``; few ones are repeated."""
    (split,) = open_to_judge(config, console, "val") if folder is None else [
        open_pictures(folder, data_options(config), say=console.print)
    ]  # fmt: skip
    found: list[Tensor] = []
    try:
        with split.loader.epoch(0) as batches:
            for batch in islice(batches, max(BATCHES)):
                found.append(batch.image_BHWC.cpu().clone())
                if sum(map(len, found)) >= max(BATCHES):
                    break
    finally:
        split.close()
    image_BHWC = torch.cat(found)
    return image_BHWC.repeat(-(-max(BATCHES) // len(image_BHWC)), 1, 1, 1)[: max(BATCHES)].contiguous()


def _about(trained: Trained, preprocess: bool) -> dict[str, str]:
    """What a program needs to know that runs the file, each value as JSON."""
    config, (height, width) = trained.config, height_width(trained.config.image_size)
    told: dict[str, Any] = {
        "arch": config.arch,
        "classes": trained.classes,
        "image_size": [height, width],
        "crop_ratio": config.crop_ratio,
        "mean": config.mean,
        "std": config.std,
        "input": f"uint8 [batch, {height}, {width}, 3], RGB" if preprocess else
        f"float32 [batch, 3, {height}, {width}], RGB: (pixels / 255 - mean) / std",
    }  # fmt: skip
    return {name: json.dumps(value) for name, value in told.items()}


def _as_onnx(module: nn.Module, example: Tensor, about: dict[str, str]) -> tuple[bytes, Runs]:
    import onnx
    import onnxruntime

    program = torch.onnx.export(
        _program(module, example) if _leaves_early(module) else module, (example,), dynamo=True,
        dynamic_shapes=_any_batch(), input_names=["images"], output_names=["logits"], external_data=False,
        verbose=False,
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for name, value in about.items():
        model.metadata_props.add(key=name, value=value)
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return data, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _as_torch_export(module: nn.Module, example: Tensor, about: dict[str, str]) -> tuple[bytes, Runs]:
    program, file = _program(module, example), io.BytesIO()
    torch.export.save(program, file, extra_files={"fastdhm.json": json.dumps(about)})
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()


def _program(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module, (example,), dynamic_shapes=_any_batch(), strict=_leaves_early(module))


def _leaves_early(module: nn.Module) -> bool:
    """Whether its trunk ends with an exception at a fork, which only the tracer of torch.compile follows."""
    return any(isinstance(part, models.AloneBranch) for part in module.modules())


def _any_batch() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch", min=1, max=2**16)},)


def _largest_difference(module: nn.Module, runs: Runs, inputs: Tensor) -> float:
    """By how much the logits of the exported network differ from the network's; ``ValueError`` if it is too much."""
    largest = 0.0
    for size in BATCHES:
        expected_BK, found_BK = module(inputs[:size]), runs(inputs[:size])
        error = float((expected_BK - found_BK).abs().max())
        if not error <= TOLERANCE * max(1.0, float(expected_BK.abs().max())):
            raise UserError(
                f"the exported network computes something else: its logits differ by {error:.2g} in a batch of {size}. "
                "Nothing is written; try the other --format"
            )
        largest = max(largest, error)
    return largest
