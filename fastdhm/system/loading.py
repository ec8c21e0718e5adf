"""Files of others are read without executing anything in them, and damage is found before it is used."""

import argparse
import pickle
import warnings
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path, PosixPath
from typing import Any

from fastdhm.errors import UserError
from fastdhm.system.files import plain_name
from fastdhm.system.paths import shown


def load_without_code(path: Path, what: str, *, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote to ``path``, on the CPU. No code in the file is executed.

    Raises:
        ValueError: the file is cut short, is of another kind, or would execute code; the message calls it a ``what``.
    """
    import torch  # imported here: importing this file must stay cheap

    try:
        with warnings.catch_warnings(), plain_name(path) as name, torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")  # about the pickle protocol of files from elsewhere
            return torch.load(name, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        # torch's own message advises to load the file with its code
        code = _code_in(path)
        if code:
            raise UserError(
                f"{shown(path)} contains code ({code}), which is not executed: save only the state_dict()"
            ) from error
        raise UserError(f"{shown(path)} is not a whole {what}, or contains code: it was not loaded") from error


def _harmless() -> list:
    """What training scripts save beside weights: their arguments, paths, and numbers of NumPy."""
    import numpy as np

    made = np.float64().__reduce__()[0]
    kinds = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    renamed = [(made, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, PosixPath, np.dtype, *(type(np.dtype(kind)) for kind in kinds), *renamed]


def _code_in(path: Path) -> str:
    """The first objects in a file of ``torch.save`` that need code to be made; "" if damage hides them."""
    import torch

    with suppress(Exception), zipfile.ZipFile(path) as parts:
        if any("/code/__torch__" in name for name in parts.namelist()):
            return "TorchScript"
    with suppress(Exception), plain_name(path) as name, torch.serialization.safe_globals(_harmless()):
        return ", ".join(sorted(torch.serialization.get_unsafe_globals_in_checkpoint(name))[:3])
    return ""


def damaged_part(path: Path) -> str | None:
    """The first damaged part of what ``torch.save`` wrote to ``path``; None if all parts are intact.

    torch writes a checksum of each part but does not check it when it loads. So a bit that a disk or a copy flipped
    would end up in a weight.
    """
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error) as error:
        return str(error)  # a damaged header that torch does not read
