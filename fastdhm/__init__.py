"""Train convolutional networks with Dynamic Hierarchical Mimicking (Li and Chen, CVPR 2020)."""

from importlib import import_module

__version__ = "0.1.0"

# name -> the module it lives in ("" for a module itself); loaded on first use, so that importing fastdhm is cheap
_FACE = {
    "mimic_loss": "fastdhm.ops.mimic_loss",
    "MimicLoss": "fastdhm.ops.mimic_loss",
    "linear_mimic_loss": "fastdhm.ops.linear_mimic_loss",
    "branch_mask": "fastdhm.ops.branch_mask",
    "attach": "fastdhm.models.attach",
    "load": "fastdhm.engine.predictor",
    "models": "",
    "methods": "",
    "reid": "",
}
__all__ = ["__version__", *_FACE]


def __getattr__(name: str):
    if name not in _FACE:
        raise AttributeError(f"module 'fastdhm' has no attribute {name!r}")
    module = _FACE[name]
    value = getattr(import_module(module), name) if module else import_module(f"fastdhm.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
