"""Trained networks of torchvision and timm, by name, with what they say of their images and classes."""

from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, NamedTuple

from torch import nn

from fastdhm.errors import UserError, first_line
from fastdhm.models.families.zoo import create, split
from fastdhm.models.weights.pretrained import download, switched_off


class Facts(NamedTuple):
    """What a trained network says of itself."""

    num_classes: int
    classes: tuple[str, ...] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int | tuple[int, int]


@dataclass(frozen=True)
class LibraryNetwork:
    """A network with the weights that its library has for it."""

    network: nn.Module
    weights: str
    facts: Facts


def library_network(name: str) -> LibraryNetwork:
    """``torchvision:NAME`` or ``timm:NAME`` with its library's default weights, downloaded once.

    Raises:
        ValueError: the library is not installed, has no such network or no weights for it, or they cannot be loaded.
    """
    library, name = split(name)
    return _timm(name) if library == "timm" else _torchvision(name)


def _torchvision(name: str) -> LibraryNetwork:
    from torchvision.models import get_model_weights

    chosen: Any = get_model_weights(name).DEFAULT
    state = download(chosen, name)
    classes = tuple(chosen.meta["categories"])
    network = create("torchvision", name, len(classes), trained=True)
    own = network.state_dict()
    own.update({key: tensor for key, tensor in state.items() if not switched_off(network, key)})
    network.load_state_dict(own)
    images = chosen.transforms()
    facts = Facts(len(classes), classes, tuple(images.mean), tuple(images.std), images.crop_size[0])
    return LibraryNetwork(network, str(chosen), facts)


def _timm(name: str) -> LibraryNetwork:
    import timm

    make: Callable[..., nn.Module] = timm.create_model
    try:
        network = make(name, pretrained=True)
    except (OSError, HTTPException, RuntimeError, ValueError) as error:  # none there, no network, or wrong bytes
        raise UserError(
            f"timm's weights of {name} could not be loaded ({first_line(error)}): see that there is a network, or give "
            f"a file with --teacher-arch timm:{name}"
        ) from error
    cfg: dict[str, Any] = network.pretrained_cfg  # type: ignore[assignment] # timm sets it
    number, (height, width) = cfg["num_classes"], cfg["input_size"][1:]
    names = tuple(timm.data.ImageNetInfo("imagenet-1k").label_names()) if number == 1000 else None
    size = height if height == width else (height, width)
    facts = Facts(number, names, tuple(cfg["mean"]), tuple(cfg["std"]), size)
    return LibraryNetwork(network, str(cfg.get("tag") or "its default weights"), facts)
