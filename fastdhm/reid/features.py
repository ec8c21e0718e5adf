"""Features: the input of a network's classifier for each image, for ranking or for a search index.

Legend: B batch, N images, D features, C channels, H height, W width.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdhm.errors import UserError
from fastdhm.system.files import plain_name, replacing, write_text
from fastdhm.system.paths import shown

SUFFIXES = (".safetensors", ".npy")
HEADER_BYTES = 99_000_000  # for names: safetensors reads no header of more than 100 MB


@torch.no_grad()
def extract_features(
    network: nn.Module,
    batches: Iterable[Tensor],
    *,
    layer: str,
    flip: bool = False,
    normalise: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """The input of the network's classifier for each image, in order; a feature map is averaged over its positions.

    The network runs in evaluation mode; its mode is restored afterwards. Features stay on the device until the last
    batch, so that the host does not wait for the device.

    Args:
        network: images to logits. Strip a branched model first: the classifiers of its branches would run too.
        batches: ``[B, C, H, W]`` each, preprocessed as in training.
        layer: the name of the classifier, a linear layer or a convolution.
        flip: average with the features of the mirrored image.
        normalise: scale each feature vector to length 1, after averaging.
        device: where the network is; default: where its first parameter is.

    Returns:
        ``float32 [N, D]`` on the CPU.

    Raises:
        ValueError: the layer does not run exactly once on all images, or there is no batch.
    """
    device = torch.device(device or next(network.parameters()).device)
    caught: list[Tensor] = []
    classifier = network.get_submodule(layer)
    hook = classifier.register_forward_pre_hook(lambda module, args: caught.append(_pooled(module, args[0])))
    was_training = network.training
    network.eval()
    features = []
    try:
        for image_BCHW in batches:
            image_BCHW = image_BCHW.to(device, non_blocking=True)
            feature_BD = _features(network, image_BCHW, caught)
            if flip:
                feature_BD = (feature_BD + _features(network, image_BCHW.flip(3), caught)) / 2
            features.append(F.normalize(feature_BD) if normalise else feature_BD)
    finally:
        hook.remove()
        network.train(was_training)
    if not features:
        raise ValueError("no batch to extract features from: the data set is empty, or its iterator is exhausted")
    return torch.cat(features).cpu()


def _features(network: nn.Module, image_BCHW: Tensor, caught: list[Tensor]) -> Tensor:
    caught.clear()
    network(image_BCHW)
    shapes = [tuple(feature.shape) for feature in caught]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != len(image_BCHW):
        raise ValueError(
            f"the classifier of {type(network).__name__} got {shapes or 'nothing'} for a batch of {len(image_BCHW)}: "
            "the network must call it exactly once, with all images"
        )
    return caught.pop().float()


def _pooled(classifier: nn.Module, x: Tensor) -> Tensor:
    """The input of a classifier as ``[B, D]``: the mean over the positions of a feature map, or over tokens."""
    features = 1 if isinstance(classifier, nn.Conv2d) else x.ndim - 1
    places = [dim for dim in range(1, x.ndim) if dim != features]
    return x.mean(places) if places else x


def save_features(path: Path, feature_ND: Tensor, names: Sequence[str]) -> None:
    """Write embeddings and the names of their images, as ``.safetensors`` or ``.npy``.

    In a ``.safetensors`` the tensor is ``features``, and ``names`` in the metadata is a JSON list in the order of the
    rows. Beside a ``.npy``, that list is in a ``.json`` of the same name. So it is for a ``.safetensors`` with more
    names than its header can hold, some two million. Each file is whole or absent.

    Raises:
        ValueError: another suffix, or the number of names is not the number of rows.
    """
    path = Path(path)
    check_suffix(path)
    if len(names) != len(feature_ND):
        raise ValueError(f"{len(names)} names for {len(feature_ND)} embeddings: must be one for each")
    listed, beside = _listed(names), names_beside(path, names)
    feature_ND = feature_ND.detach().cpu().contiguous()
    if beside:
        write_text(beside, listed)
    with replacing(path) as temporary:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            with plain_name(temporary) as name:
                save_file({"features": feature_ND}, name, metadata=None if beside else {"names": listed})
        else:
            with open(temporary, "wb") as file:
                np.save(file, feature_ND.numpy(), allow_pickle=False)


def _listed(names: Sequence[str]) -> str:
    """Names as JSON; a byte of a name that is not a character becomes an escape of JSON."""
    return json.dumps(list(names), ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def names_beside(path: Path, names: Sequence[str]) -> Path | None:
    """The file for these names if embeddings are saved to ``path``; None if ``path`` itself holds them."""
    header = json.dumps(_listed(names), ensure_ascii=False)
    if path.suffix == ".safetensors" and len(header.encode()) <= HEADER_BYTES:
        return None
    return path.with_suffix(".json")


def check_suffix(path: Path) -> None:
    """``ValueError`` if embeddings cannot be written to a file with the suffix of ``path``."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{shown(path)}: embeddings are written as {' or '.join(SUFFIXES)}, not '{shown(path.suffix)}'")


def load_features(path: Path) -> tuple[Tensor, list[str]]:
    """Read embeddings and names that :func:`save_features` wrote. No code in the files is executed."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with plain_name(path) as name, safe_open(name, "pt") as file:
                feature_ND, metadata = file.get_tensor("features"), file.metadata() or {}
            if "names" in metadata:
                return feature_ND, json.loads(metadata["names"])
        else:
            feature_ND = torch.from_numpy(np.load(path, allow_pickle=False))
        return feature_ND, json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except Exception as error:  # each format has its own errors for an absent, damaged or foreign file
        raise UserError(f"{shown(path)}: not embeddings written by fastdhm: {error}") from error
