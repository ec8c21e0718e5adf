"""What a network makes of an image before its classifier, for ranking or for a search index.

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

SUFFIXES = (".safetensors", ".npy")
HEADER_BYTES = 99_000_000  # of names: safetensors reads no header of more than 100 MB


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
    """The input of the network's classifier for each image, in order, averaged over its places where it is a map.

    The network runs in evaluation mode and is left as it was. Features stay on the device until the last batch, so that
    nothing waits for it.

    Args:
        network: images to logits; a branched model stripped of its branches, whose classifiers would come last.
        batches: ``[B, C, H, W]`` each, made ready as in training.
        layer: the name of the classifier, a linear layer or a convolution.
        flip: average with the features of the mirrored image.
        normalise: scale each to length 1, after averaging.
        device: where the network is; default: where its first parameter is.

    Returns:
        ``float32 [N, D]`` on the CPU.

    Raises:
        ValueError: a layer that does not run just once on all images, or no batch at all.
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
        raise ValueError("no batch to extract features from: the data set is empty or its iterator is used up")
    return torch.cat(features).cpu()


def _features(network: nn.Module, image_BCHW: Tensor, caught: list[Tensor]) -> Tensor:
    caught.clear()
    network(image_BCHW)
    shapes = [tuple(feature.shape) for feature in caught]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != len(image_BCHW):
        raise ValueError(
            f"the classifier of {type(network).__name__} was given {shapes or 'nothing'} for {len(image_BCHW)} "
            "images: features need it to be called once, with all of them"
        )
    return caught.pop().float()


def _pooled(classifier: nn.Module, x: Tensor) -> Tensor:
    """What a classifier takes in as ``[B, D]``: the mean over the places of a feature map or over tokens."""
    features = 1 if isinstance(classifier, nn.Conv2d) else x.ndim - 1
    places = [dim for dim in range(1, x.ndim) if dim != features]
    return x.mean(places) if places else x


def save_features(path: Path, feature_ND: Tensor, names: Sequence[str]) -> None:
    """Write embeddings and the names of their images: ``.safetensors`` (names in its metadata), or ``.npy``.

    Beside a ``.npy`` the names go to ``.json`` of the same name, a list in the order of the rows; beside a
    ``.safetensors`` too where they are more than its header may hold, some two million. In a ``.safetensors`` the
    tensor is ``features`` and the metadata's ``names`` is such a list. Each file is whole or not there.

    Raises:
        ValueError: another suffix, or not a name for each row.
    """
    path = Path(path)
    check_suffix(path)
    if len(names) != len(feature_ND):
        raise ValueError(f"{len(names)} names for {len(feature_ND)} embeddings: needs one for each")
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
    """Names as JSON; a byte of a name that is no character becomes JSON's own escape."""
    return json.dumps(list(names), ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def names_beside(path: Path, names: Sequence[str]) -> Path | None:
    """The file that has these names if embeddings are saved to ``path``; None where that has them itself."""
    header = json.dumps(_listed(names), ensure_ascii=False)
    if path.suffix == ".safetensors" and len(header.encode()) <= HEADER_BYTES:
        return None
    return path.with_suffix(".json")


def check_suffix(path: Path) -> None:
    """``ValueError`` if embeddings cannot be written to a file of that name."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: embeddings are written as {' or '.join(SUFFIXES)}, not '{path.suffix}'")


def load_features(path: Path) -> tuple[Tensor, list[str]]:
    """What :func:`save_features` wrote: embeddings and names. Nothing in the files is executed."""
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
    except Exception as error:  # each format has errors of its own for a file that is absent, cut short or another's
        raise UserError(f"{path}: not embeddings that were written by fastdhm: {error}") from error
