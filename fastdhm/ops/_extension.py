"""The one place that loads ``fastdhm._C``; where it cannot be loaded, this keeps the reason."""

import importlib

import torch

from fastdhm.errors import UserError

OPS = ("branch_mask", "batch_norm_act", "conv2d", "conv3x3", "match_ranks", "shortcut")  # beside the loss
BUILD = "build it from a checkout with 'pip install --no-build-isolation .' (needs a C++ compiler, such as apt's g++)"


def _load():
    """The module and None, or None and the reason why it cannot be used."""
    try:
        module = importlib.import_module("fastdhm._C")
    except ModuleNotFoundError as error:
        return None, f"the C++ extension was not built ({error}): {BUILD}"
    except (ImportError, OSError) as error:
        return None, (
            f"the C++ extension does not load with torch {torch.__version__}, most likely because it was built for "
            f"another ({error}): {BUILD}"
        )
    # torch keeps its C++ ABI within a minor version only; another one may load and then corrupt memory.
    built_for = module.build_info()["torch"]
    if _minor(built_for) != _minor(torch.__version__):
        return None, f"the C++ extension was built for torch {built_for}, this is torch {torch.__version__}: {BUILD}"
    lacking = [op for op in OPS if not hasattr(torch.ops.fastdhm, op)]
    if lacking:
        return None, f"the C++ extension was built from older sources, which had no {', '.join(lacking)}: {BUILD}"
    return module, None


def _minor(version):
    return tuple(int(part) for part in version.split(".")[:2])


# Python runs this once, when the first op is imported: ops can then ask without an import inside torch.compile.
_module, _reason = _load()


def available():
    """Whether the C++ ops can be used."""
    return _module is not None


def reason():
    """Why the C++ ops cannot be used, and what to do; None where they can."""
    return _reason


def require(what):
    """The module ``fastdhm._C``, or a ``ValueError``: that ``what`` needs it, why it is not there, what to do."""
    if _module is None:
        raise UserError(f"{what} needs the C++ extension: {_reason}")
    return _module
