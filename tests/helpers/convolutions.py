"""A convolution and its gradients, how far they are from exact ones, and whether this processor has a form for them."""

import pytest

from fastdhm.ops._convolution import why_not


def differentiated(rule, x, weight, grad_y):
    """The result of ``rule(x, weight)`` and both gradients, by name, as float64."""
    leaves = [x.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()]
    y = rule(*leaves)
    y.backward(grad_y)
    return {"y": y.detach().double(), "grad_x": leaves[0].grad.double(), "grad_weight": leaves[1].grad.double()}


def error(got, exact):
    return {name: float((got[name] - exact[name]).norm() / exact[name].norm().clamp(min=1e-30)) for name in exact}


def skip_unless_taken(x, weight):
    reason = why_not(x, weight)
    if reason is not None and "vector instructions" in reason:
        pytest.skip(reason)
