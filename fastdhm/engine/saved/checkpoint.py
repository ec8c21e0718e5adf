"""What a run leaves on disk: its config, its checkpoints and the stripped network; each is complete or absent.

``names`` has what they are called. Loading runs no code from a file.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fastdhm.config import TrainConfig
from fastdhm.data.sources.identity import Identity
from fastdhm.engine.saved.names import BEST, CONFIG, LAST
from fastdhm.errors import UserError, first_line
from fastdhm.system.files import plain_name, replacing
from fastdhm.system.folders import contents
from fastdhm.system.loading import damaged_part, load_without_code
from fastdhm.system.typed_yaml import build, read_yaml

FORMAT = 1
# What a resumed run may set anew: where and how it runs, not what it learns.
RESUMABLE = (
    "data_dir", "max_steps", "loader", "workers",
    "device", "impl", "precision", "loss", "compile", "cuda_graphs", "activation_checkpointing", "log_every",
    "save_minutes", "grad_cosine", "report", "profile", "log_to",
)  # fmt: skip
HOW_IT_RUNS = tuple(name for name in RESUMABLE if name != "max_steps")  # another max_steps makes another run


@dataclasses.dataclass
class Position:
    """Where a run stands: ``batch`` batches into ``epoch``, after ``step`` optimizer steps."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_error: float = float("inf")
    best_epoch: int = -1
    compiled_at: int | None = None  # the step after which the compiled one took over
    plan: tuple[float, float, float] | None = None  # of a run whose epochs do not all fit into its hours
    timed_out: bool = False  # its hours ended it in the middle of an epoch


def save_checkpoint(path: Path, config: TrainConfig, classes: tuple[str, ...], state: dict[str, Any]) -> None:
    """Write a checkpoint: tensors, numbers and strings only. ``data`` in a run's ``state`` identifies its images."""
    saved = {"format": FORMAT, "config": dataclasses.asdict(config), "classes": list(classes), **state}
    with replacing(path) as temporary, open(temporary, "wb") as file:  # a path's name would stand in the file
        torch.save(saved, file)


def load_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing anything in it. ``mmap``: read tensors lazily.

    Raises:
        ValueError: missing, cut short, not a checkpoint of ours, or of another format version.
    """
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    checkpoint = load_without_code(path, "checkpoint", mmap=mmap)
    if not isinstance(checkpoint, dict) or not {"format", "config", "classes", "model"} <= checkpoint.keys():
        raise UserError(f"{path} is not a checkpoint of fastdhm")
    if checkpoint["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {checkpoint['format']}; this fastdhm reads {FORMAT}")
    if not mmap and damaged_part(path) is not None:
        raise UserError(f"{path} is damaged: its bytes are not those that were written. Take another copy of it")
    return checkpoint


def judged(saved: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint that are validated and kept: the moving average if the run has one."""
    return saved.get("average", saved["model"])


def kept_checkpoint(run_dir: Path, config: TrainConfig) -> Path:
    """The checkpoint that a run's stripped network comes from."""
    best = run_dir / BEST
    return best if config.keep == "best" and best.exists() else run_dir / LAST


def load_weights(module: nn.Module, state: dict[str, Tensor], path: Path, arch: str) -> None:
    """Strictly load ``state`` into ``module``; ``ValueError`` with the first difference if the networks differ."""
    own = module.state_dict()
    missing, extra = [n for n in own if n not in state], [n for n in state if n not in own]
    reshaped = [f"{n} {tuple(state[n].shape)}" for n in own if n in state and state[n].shape != own[n].shape]
    if missing or extra or reshaped:
        raise UserError(
            f"{path} holds another network than {arch}: {len(missing)} tensors missing, {len(extra)} unknown, "
            f"{len(reshaped)} of another shape (first: {(missing + extra + reshaped)[0]})"
        )
    own.update(state)  # this keeps the versions of the modules, which MNASNet needs
    module.load_state_dict(own)


def save_network(
    path: Path,
    network: nn.Module,
    config: TrainConfig,
    classes: tuple[str, ...],
    data: Identity | None = None,
    *,
    averaged: bool = False,
) -> None:
    """Write the plain network, with what its user needs to know: architecture, classes, image size, normalisation.

    ``averaged``: it is the mean of several networks. Equal runs leave equal files, wherever they lie.
    """
    config = dataclasses.replace(config, run_dir=None)
    metadata = {name: json.dumps(value) for name, value in dataclasses.asdict(config).items()}
    metadata |= {"fastdhm": str(FORMAT), "classes": json.dumps(classes), "data": json.dumps(data or {})}
    metadata |= {"averaged": "true"} if averaged else {}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(_in_order(save(tensors, metadata)))


def _in_order(saved: bytes) -> bytes:
    """A safetensors file whose metadata lie in their order by name: the library's own order is drawn at random."""
    end = 8 + int.from_bytes(saved[:8], "little")
    header = json.loads(saved[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + saved[end:]


def load_network(path: Path) -> tuple[dict[str, Tensor], TrainConfig, tuple[str, ...], Identity]:
    """The weights of a stripped network, the config of its run, its class names and what it learnt from."""
    with _whole_safetensors(path) as file:
        metadata = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    if "fastdhm" not in metadata:
        raise UserError(f"{path} was not written by fastdhm: it does not say its architecture and classes")
    classes = tuple(metadata.pop("classes"))
    del metadata["fastdhm"]
    metadata.pop("averaged", None)
    data = metadata.pop("data", {})
    return state, config_from(metadata, path), classes, data


@contextmanager
def _whole_safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file to read from; ``ValueError`` if it is none, or cut short."""
    try:
        with plain_name(path) as name, safe_open(name, "pt") as file:
            yield file
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is no whole safetensors file: {first_line(error)}") from error


def learnt_from(network: Path) -> Identity:
    """Which images a stripped network learnt from and was judged on, see ``data.sources.identity``.

    Empty if its file does not say, being of before that was kept.
    """
    with _whole_safetensors(network) as file:
        return json.loads((file.metadata() or {}).get("data", "{}"))


def is_average(network: Path) -> bool:
    """Whether a network file holds the mean of several networks."""
    with _whole_safetensors(network) as file:
        return "averaged" in (file.metadata() or {})


def numbered_classes(num_classes: int) -> tuple[str, ...]:
    """Names for the classes of a network whose file does not say them."""
    return tuple(f"class {number}" for number in range(num_classes))


def refuse_existing(run_dir: Path, config: TrainConfig) -> None:
    """``ValueError`` if ``run_dir`` holds a run already, or anything else."""
    if (run_dir / CONFIG).exists():
        other = differing(read_config(run_dir), config, free=("run_dir", *RESUMABLE))
        what = f"with another config ({', '.join(other)})" if other else "with this config"
        raise UserError(
            f"{run_dir} holds a run {what}: go on with it by --resume {run_dir}, or choose another --run-dir"
        )
    if run_dir.exists() and (not run_dir.is_dir() or contents(run_dir)):
        raise UserError(f"{run_dir} is there and is not a run of fastdhm: choose another --run-dir")


def refuse_changed(run_dir: Path, config: TrainConfig) -> None:
    """``ValueError`` if ``config`` differs from the run's checkpoint in a field that changes what is learnt.

    That is so if the config file was edited since. Other ``epochs`` may be the same run: its resuming compares.
    """
    if not (run_dir / LAST).exists():
        return
    saved = config_from(load_checkpoint(run_dir / LAST, mmap=True)["config"], run_dir / LAST)
    unused = () if saved.scale_lr or config.scale_lr else ("lr_batch_size",)
    free = ("run_dir", "preset", "epochs", *unused, *RESUMABLE, *moved(saved, config))
    changed = differing(saved, config, free=free)
    if changed:
        raise UserError(
            f"{run_dir / CONFIG} is not what {LAST} was trained with ({'; '.join(changed)}): put it back, or "
            "start a new run"
        )


def moved(old: TrainConfig, new: TrainConfig) -> tuple[str, ...]:
    """What may lie elsewhere and be the same: folders of images and a teacher, whose content is compared."""
    kinds = {config.dataset.partition(":")[0] for config in (old, new)}
    folders = ("dataset",) if kinds in ({"folder"}, {"reid-folder"}) else ()
    return folders + ("teacher",) * (None not in (old.teacher, new.teacher))


def write_config(run_dir: Path, config: TrainConfig) -> None:
    """Write ``config.yaml``, every value resolved."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    with replacing(run_dir / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(plain, sort_keys=False), "utf-8")


def read_config(run_dir: Path) -> TrainConfig:
    """The config of a run directory."""
    path = run_dir / CONFIG
    if not path.exists():
        if not run_dir.exists():
            raise UserError(f"{run_dir} does not exist: name the folder of a run")
        inside = run_dir.is_file() and (run_dir.parent / path.name).exists()
        told = (
            f"is a file of a run: name its folder, {run_dir.parent}"
            if inside
            else f"is not a run of fastdhm: it holds no {CONFIG}"
        )
        raise UserError(f"{run_dir} {told}")
    return config_from(read_yaml(path), path)


def run_config(run_dir: Path) -> TrainConfig:
    """The config of a run directory, which its checkpoint must agree with: what resuming and judging go by."""
    config = read_config(run_dir)
    refuse_changed(run_dir, config)
    return config


def config_from(values: Any, path: Path) -> TrainConfig:
    """A config from plain values read at ``path``; ``ValueError`` naming the file if they do not make one."""
    return build(TrainConfig, values, f"{path} does not hold a config of this fastdhm")


def differing(old: TrainConfig, new: TrainConfig, free: tuple[str, ...] = RESUMABLE) -> list[str]:
    """The values in which two configs differ, as ``name: old -> new``, those in ``free`` aside."""
    before, after = dataclasses.asdict(old), dataclasses.asdict(new)
    return [f"{k}: {v} -> {after[k]}" for k, v in before.items() if v != after[k] and k not in free]
