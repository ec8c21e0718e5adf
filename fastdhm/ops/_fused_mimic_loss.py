"""``fastdhm::mimic_loss`` as a torch op: C++ on the CPU, Triton on CUDA, with autograd.

On the CPU autograd calls ``csrc/mimic_loss/autograd.cpp``, which takes less time. What is registered here means the
same, and serves CUDA and the transforms of torch.func.

Legend: M branches, B batch, K classes.
"""

import importlib.util

import torch
from torch import Tensor

from fastdhm.errors import UserError
from fastdhm.ops import _extension

# Looked up once: torch.compile asks this while it traces, and cannot trace Python's import system.
# A folder "triton" beside a script is found too, without an origin.
HAS_TRITON = getattr(importlib.util.find_spec("triton"), "origin", None) is not None

SCHEMA = (
    "(Tensor logits, Tensor target, Tensor weights, float temperature, float label_smoothing, int ignore_index, "
    "bool need_grad, Tensor? target2=None, Tensor? share=None, Tensor? row_weight=None) -> "
    "(Tensor loss, Tensor terms, Tensor grad)"
)
try:
    torch.library.define("fastdhm::mimic_loss", SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
except RuntimeError as error:  # the extension has registered C++ of other arguments, which torch cannot take back
    raise UserError(f"the C++ extension was built from older sources, with another loss: {_extension.BUILD}") from error
torch.library.define("fastdhm::scale_", "(Tensor(a!) grad, Tensor factor) -> ()", tags=(torch.Tag.pt2_compliant_tag,))


def why_not(impl: str) -> str | None:
    """Why ``impl`` cannot be used here and how to get it, or None if it can."""
    if impl == "cpp":
        return _extension.reason()
    if impl == "triton" and not HAS_TRITON:
        return "triton is not installed: 'pip install triton' (it comes with the CUDA builds of torch)"
    return None


@torch.library.impl("fastdhm::mimic_loss", "CUDA")
def _mimic_loss_cuda(*args):
    from fastdhm.kernels.mimic_loss import mimic_loss

    return mimic_loss(*args)


@torch.library.impl("fastdhm::scale_", "CUDA")
def _scale_cuda(grad, factor):
    from fastdhm.kernels.mimic_loss import scale_

    scale_(grad, factor)


def grad_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the gradient: the logits', but float32 for float16, which is too narrow before loss scaling."""
    return torch.float32 if dtype == torch.float16 else dtype


@torch.library.register_fake("fastdhm::mimic_loss")
def _mimic_loss_fake(logits, target, weights, temperature, label_smoothing, ignore_index, need_grad, *_):
    M, B, K = logits.shape
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    grad = logits.new_empty((M, B, K) if need_grad else (0,), dtype=grad_dtype(logits.dtype))
    return logits.new_empty((), dtype=dtype), logits.new_empty((M, M), dtype=dtype), grad


@torch.library.register_fake("fastdhm::scale_")
def _scale_fake(grad, factor):
    return None


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], *inputs[7:])
    ctx.settings, ctx.grad, ctx.dtype = inputs[3:7], output[2], inputs[0].dtype
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)  # else backward gets zeros as large as the logits


def _backward(ctx, grad_loss, _grad_terms, _grad_grad):
    """The gradient from forward, scaled in place; a second backward through the same graph computes it again."""
    if grad_loss is None:
        return (None,) * 10
    grad, ctx.grad = ctx.grad, None
    if grad is None:
        logits, target, weights, *more = ctx.saved_tensors
        grad = torch.ops.fastdhm.mimic_loss(logits, target, weights, *ctx.settings, *more)[2]
    grad = scaled(grad, grad_loss)
    if torch.is_grad_enabled():  # create_graph=True
        grad = NoSecondDerivative.apply(grad, grad_loss, ctx.saved_tensors[0])
    return grad.to(ctx.dtype), *(None,) * 9


def scaled(grad: Tensor, factor: Tensor) -> Tensor:
    """``grad * factor``, where it may be done in place."""
    if not (_is_plain(grad) and _is_plain(factor)):
        return grad * factor  # a compiler can fuse this product with later operations
    if grad.device.type == "cpu" and not _extension.available():
        return grad.mul_(factor)
    torch.ops.fastdhm.scale_(grad, factor)
    return grad


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds values: no compiler traces it, and neither torch.func nor batched gradients wrap it."""
    if torch.compiler.is_compiling():
        return False
    wrapped = (torch._C._functorch.is_functorch_wrapped_tensor, torch._C._functorch.is_legacy_batchedtensor)
    return type(tensor) is Tensor and not any(is_wrapped(tensor) for is_wrapped in wrapped)


class NoSecondDerivative(torch.autograd.Function):
    """The gradient as a function of its input; its derivative raises, so that it is not silently missing."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, _factor, _of):
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError("the fused mimic_loss has no second derivative: use impl='eager' for it")


torch.library.register_autograd("fastdhm::mimic_loss", _backward, setup_context=_setup_context)


class _MimicLoss(torch.autograd.Function):
    """The op for torch.func, whose transforms ignore the autograd that is registered with an op."""

    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)

    @staticmethod
    def forward(*args):
        return torch.ops.fastdhm.mimic_loss(*args)

    @staticmethod
    def jvp(ctx, *tangents):
        raise RuntimeError("the fused mimic_loss has no forward-mode derivative: use impl='eager' for it")

    @staticmethod
    def vmap(info, in_dims, *args):
        raise RuntimeError("the fused mimic_loss has no form for torch.vmap: use impl='eager' for it")


def mimic_loss(*args) -> tuple[Tensor, Tensor, Tensor]:
    """The op on the logits' device, with autograd; arguments as in its schema."""
    if torch._C._are_functorch_transforms_active():
        return _MimicLoss.apply(*args)
    return torch.ops.fastdhm.mimic_loss(*args)
