"""Loads ``fastdhm._C``, in this one place; if that fails, keeps the reason."""

import importlib

import torch

from fastdhm.errors import UserError

OPS = ("branch_mask", "batch_norm_act", "conv2d", "conv3x3", "match_ranks", "shortcut")  # besides the loss
BUILD = "build it from a checkout with 'pip install --no-build-isolation .' (needs a C++ compiler, such as apt's g++)"


def _load():
    """The module and None, or None and the reason why it cannot be used."""
    try:
        module = importlib.import_module("fastdhm._C")
    except ModuleNotFoundError as error:
        return None, f"the C++ extension was not built ({error}): {BUILD}"
    except (ImportError, OSError) as error:
        return None, (
            f"the C++ extension does not load with torch {torch.__version__}; it was probably built for another torch "
            f"({error}): {BUILD}"
        )
    # torch keeps its C++ ABI only within a minor version; an extension for another one may load and corrupt memory.
    built_for = module.build_info()["torch"]
    if _minor(built_for) != _minor(torch.__version__):
        return (
            None,
            f"the C++ extension was built for torch {built_for}, this is torch {torch.__version__}: {BUILD}",
        )
    lacking = [op for op in OPS if not hasattr(torch.ops.fastdhm, op)]
    if lacking:
        return None, f"the C++ extension was built from older sources without {', '.join(lacking)}: {BUILD}"
    return module, None


def _minor(version):
    return tuple(int(part) for part in version.split(".")[:2])


# This runs once, at the import of the first op: so ops need no import inside torch.compile to ask.
_module, _reason = _load()


def available():
    """Whether the C++ ops can be used."""
    return _module is not None


def reason():
    """Why the C++ ops cannot be used, and what to do; None if they can."""
    return _reason


def require(what):
    """The module ``fastdhm._C``; ``ValueError`` if it is missing: ``what`` needs it, why it is missing, what to do."""
    if _module is None:
        raise UserError(f"{what} needs the C++ extension: {_reason}")
    return _module
