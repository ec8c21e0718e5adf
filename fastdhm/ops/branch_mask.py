"""Draws without state which side branches take part in a step. S: side branches."""

import torch

from fastdhm.errors import UserError, unknown
from fastdhm.ops import _extension, philox

IMPLS = ("auto", "eager", "cpp", "cuda")
DEVICES = {"cpp": "cpu", "cuda": "cuda"}  # compiled form -> the type of its devices

# Computed once, so that torch.compile sees constants.
_build_info = _extension.require("branch_mask").build_info() if _extension.available() else {"cuda": False}
_compiled_for = {"cpu": _extension.available(), "cuda": _build_info["cuda"]}


def branch_mask(probs_S, seed, step, *, impl="auto"):
    """Draw, for each side branch, whether it takes part in a step: a pure function of (seed, step, branch).

    mask[s] = draw(s, step, STREAM_BRANCH_MASK, seed)[0] < probs[s] * 2**32, compared exactly (in float64)

    where ``draw`` is Philox 4x32-10. So mask[s] is true with probability ceil(probs[s] * 2**32) / 2**32: never for 0,
    always for 1. All backends and devices give the same bits. No global generator is read or advanced, and the host
    never waits.

    Args:
        probs_S: ``[S]``, floating, in [0, 1]: the probability of each branch. No gradient reaches it.
        seed: int in [0, 2**64).
        step: number of the iteration or epoch: int in [0, 2**63), or an int64 tensor without dimensions on the device
            of ``probs_S``, which a captured CUDA graph can advance.
        impl: ``eager`` (the reference, any device), ``cpp`` (CPU), ``cuda`` (a kernel on the current stream; it
            is compiled and linked in every full build, but has not been run on a GPU yet), or ``auto``: the compiled
            form for the device of ``probs_S`` if it was built, else ``eager``.

    Returns:
        ``[S]``, bool, on the device of ``probs_S``.

    Raises:
        ValueError: a wrong shape, dtype, device, seed, step or impl, or an impl that is not available here.
            Probabilities outside [0, 1] are refused on the CPU. On other devices and inside torch.compile they are not
            read, as that would stop the step: values up to 0 and NaN mean never, values from 1 on mean always.

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    _check(probs_S, seed, step, impl)
    if not isinstance(step, torch.Tensor):
        step = torch.full((), step, dtype=torch.int64, device=probs_S.device)
    if impl in DEVICES or (impl == "auto" and _compiled_for.get(probs_S.device.type)):
        # The schema's int is signed; the 64 bits stay the same.
        return torch.ops.fastdhm.branch_mask(probs_S, seed - 2**64 if seed >= 2**63 else seed, step)
    return branch_mask_eager(probs_S, seed, step)


def branch_mask_eager(probs_S, seed, step):
    """The reference: the rule of :func:`branch_mask` in torch operations, without checks; ``step`` is a tensor."""
    branch_S = torch.arange(len(probs_S), device=probs_S.device)
    word_S = philox.draw(branch_S, step, philox.STREAM_BRANCH_MASK, seed)[0]
    return word_S.double() < probs_S.double() * 2**32


if _extension.available():

    @torch.library.register_fake("fastdhm::branch_mask")
    def _branch_mask_fake(probs_S, seed, step):
        return torch.empty_like(probs_S, dtype=torch.bool)


def _require(impl):
    """``ValueError`` if a compiled form was not built: says why, and how to get it."""
    _extension.require(f"branch_mask with impl={impl!r}")
    if not _compiled_for[DEVICES[impl]]:
        raise UserError(
            f"branch_mask with impl={impl!r} needs CUDA code, but the C++ extension was built without it: "
            f"{_build_info['why_no_cuda']}. Then build it again with 'pip install --no-build-isolation .'"
        )


def _check(probs_S, seed, step, impl):
    if impl not in IMPLS:
        raise unknown("impl", impl, IMPLS)
    if not isinstance(probs_S, torch.Tensor) or probs_S.dim() != 1 or not probs_S.is_floating_point():
        raise UserError(
            f"probs_S is {_describe(probs_S)}: must be a floating tensor of one dimension, one probability per branch"
        )
    if impl in DEVICES:
        _require(impl)
        if probs_S.device.type != DEVICES[impl]:
            place = {"cpp": "the CPU", "cuda": "CUDA devices"}[impl]
            raise UserError(f"probs_S is on {probs_S.device}: impl={impl!r} runs on {place}, use impl='auto'")
    if not isinstance(seed, int):
        raise UserError(f"seed is {seed!r}: must be an int in [0, 2**64)")
    if not 0 <= seed < 2**64:
        raise UserError(f"seed is {seed}: must be in [0, 2**64)")
    if isinstance(step, torch.Tensor):
        if step.dim() != 0 or step.dtype != torch.int64:
            raise UserError(f"step is {_describe(step)}: must be an int or an int64 tensor without dimensions")
        if step.device != probs_S.device:
            raise UserError(f"step is on {step.device} and probs_S on {probs_S.device}: must be on one device")
    elif not isinstance(step, int):
        raise UserError(f"step is {step!r}: must be an int or an int64 tensor without dimensions")
    elif not 0 <= step < 2**63:
        raise UserError(f"step is {step}: must be in [0, 2**63)")
    if probs_S.device.type == "cpu" and not torch.compiler.is_compiling():
        bad_S = ~((probs_S >= 0) & (probs_S <= 1))  # written so that NaN is bad too
        if bad_S.any():
            index = int(bad_S.nonzero()[0])
            raise UserError(f"probs_S[{index}] is {float(probs_S[index])}: must be in [0, 1]")


def _describe(value):
    return f"a {value.dtype} tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
