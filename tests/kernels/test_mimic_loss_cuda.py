"""What only a CUDA device can show of the kernels: graphs, streams, waiting, sizes beyond 32 bits.

Legend: M branches, B batch, K classes.
"""

import pytest
import torch

from fastdhm.kernels import mimic_loss as kernel
from fastdhm.ops.mimic_loss import mimic_loss, mimic_loss_eager

pytestmark = pytest.mark.gpu
OPTIONS = (2.0, 0.1, -100, True)


def case(M, B, K, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    logits_MBK = 3 * torch.randn(M, B, K, generator=generator, device="cuda")
    target_B = torch.randint(K, (B,), generator=generator, device="cuda")
    return logits_MBK, target_B, torch.ones(M, M, device="cuda")


@pytest.mark.parametrize("kind", ["plain", "mixed_and_weighed"])
def test_a_captured_graph_follows_its_inputs(kind):
    arguments, other = case(3, 64, 100), case(3, 64, 100, seed=1)
    soft = [labels(64, 100, kind, seed) for seed in (0, 1)]
    kernel.mimic_loss(*arguments, *OPTIONS, *soft[0])  # compiles, which a capture may not
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = kernel.mimic_loss(*arguments, *OPTIONS, *soft[0])
    other[2][1], other[2][:, 1] = 0, 0  # another mask without another capture
    for ours, new in zip((*arguments, *soft[0]), (*other, *soft[1]), strict=True):
        if ours is not None:
            ours.copy_(new)
    expected = kernel.mimic_loss(*other, *OPTIONS, *soft[1])
    for _ in range(3):
        graph.replay()
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(captured, expected, strict=True))


def labels(B, K, kind, seed=0):
    """Mixed labels and row weights, zeros and ones among them, as the op takes them; None for what the kind has not."""
    generator = torch.Generator("cuda").manual_seed(100 + seed)
    target2_B = torch.randint(K, (B,), generator=generator, device="cuda")
    share_B, row_weight_B = torch.rand(2, B, generator=generator, device="cuda")
    share_B[1::4], share_B[2::5], row_weight_B[3::4] = 0, 1, 0
    mixed, weighed = "mixed" in kind, "weighed" in kind
    return target2_B if mixed else None, share_B if mixed else None, 3 * row_weight_B if weighed else None


@pytest.mark.parametrize("kind", ["mixed", "weighed", "mixed_and_weighed"])
@pytest.mark.parametrize("mode", ["eager", "default"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mixed_and_weighed_labels_are_the_reference_in_float64(dtype, mode, kind):
    """A row that does not fit on chip, and one that does."""

    def step(logits_MBK, target_B, weights_MM, target2_B, share_B, row_weight_B):
        mix = None if target2_B is None else (target2_B, share_B)
        return mimic_loss(
            logits_MBK, target_B, weights_MM, temperature=2.0, label_smoothing=0.1, mix=mix, row_weight_B=row_weight_B
        )

    run = step if mode == "eager" else torch.compile(step, fullgraph=True, dynamic=False)
    for shape in ((3, 61, 100), (2, 7, 70_001)):
        logits_MBK, target_B, weights_MM = case(*shape)
        target_B[::5] = -100
        own = labels(*shape[1:], kind)
        logits_MBK = logits_MBK.to(dtype).requires_grad_()
        loss, terms_MM = run(logits_MBK, target_B, weights_MM, *own)
        loss.backward()
        wide_MBK = logits_MBK.detach().double().requires_grad_()
        wide = [None if tensor is None else tensor.double() for tensor in own[1:]]
        mix = None if own[0] is None else (own[0], wide[0])
        exact, exact_MM = mimic_loss_eager(wide_MBK, target_B, weights_MM.double(), 2.0, 0.1, -100, mix, wide[1])
        exact.backward()
        torch.testing.assert_close(loss.double(), exact.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(terms_MM.double(), exact_MM, rtol=1e-4, atol=1e-6)
        size = wide_MBK.grad.abs().max().item()
        epsilon = max(torch.finfo(dtype).eps, 1e-5)
        torch.testing.assert_close(logits_MBK.grad.double(), wide_MBK.grad, rtol=epsilon, atol=epsilon * size)


@pytest.mark.parametrize("mode", ["eager", "default", "reduce-overhead"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_loss_in_a_step_is_the_reference_in_float64(dtype, mode):
    """Through autograd, a scaled backward and torch.compile, as a training step has it; some batches of a shape."""

    def step(logits_MBK, target_B, weights_MM):
        loss, terms_MM = mimic_loss(logits_MBK, target_B, weights_MM, temperature=2.0, label_smoothing=0.1)
        return 3 * loss, terms_MM

    run = step if mode == "eager" else torch.compile(step, fullgraph=True, dynamic=False, mode=mode)
    for seed in range(3):
        logits_MBK, target_B, weights_MM = case(3, 64, 100, seed)
        logits_MBK = logits_MBK.to(dtype).requires_grad_()
        loss, terms_MM = run(logits_MBK, target_B, weights_MM)
        loss.backward()
        wide_MBK = logits_MBK.detach().double().requires_grad_()
        exact, exact_MM = mimic_loss_eager(wide_MBK, target_B, weights_MM.double(), 2.0, 0.1)
        (3 * exact).backward()
        torch.testing.assert_close(loss.double(), 3 * exact.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(terms_MM.double(), exact_MM, rtol=1e-4, atol=1e-6)
        size = wide_MBK.grad.abs().max().item()
        epsilon = max(torch.finfo(dtype).eps, 1e-5)
        torch.testing.assert_close(logits_MBK.grad.double(), wide_MBK.grad, rtol=epsilon, atol=epsilon * size)


@pytest.mark.parametrize("kind", ["plain", "mixed_and_weighed"])
def test_the_host_never_waits(kind):
    arguments, soft = case(3, 64, 100), labels(64, 100, kind)
    factor = torch.tensor(0.5, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernel.scale_(kernel.mimic_loss(*arguments, *OPTIONS, *soft)[2], factor)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_streams_do_not_disturb_each_other():
    cases = [case(3, 256, 1000, seed) for seed in range(8)]
    expected = [kernel.mimic_loss(*arguments, *OPTIONS) for arguments in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    results = []
    for stream, arguments in zip(streams, cases, strict=True):
        with torch.cuda.stream(stream):
            results.append(kernel.mimic_loss(*arguments, *OPTIONS))
    torch.cuda.synchronize()
    for ours, theirs in zip(results, expected, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", [(2, 2, 2**29 + 3), (2, 2**21 + 1, 1024)], ids=["classes", "rows"])
def test_offsets_beyond_32_bits(shape):
    free, _ = torch.cuda.mem_get_info()
    if free < 20 * 2**30:
        pytest.skip(f"needs 20 GiB of free memory on the device, there are {free / 2**30:.1f}")
    M, B, K = shape
    logits_MBK = torch.zeros(shape, dtype=torch.bfloat16, device="cuda")
    logits_MBK[-1, -1, -1] = 30
    target_B = torch.full((B,), K - 1, device="cuda")
    weights_MM = torch.eye(M, device="cuda")
    _, terms_MM, grad_MBK = kernel.mimic_loss(logits_MBK, target_B, weights_MM, 1.0, 0.0, -100, True)
    uniform = torch.tensor(float(K)).log()
    last = -torch.tensor(30.0).sub(torch.tensor([30.0]).exp().add(K - 1).log()[0])
    torch.testing.assert_close(terms_MM[0, 0].cpu(), uniform, rtol=1e-3, atol=0)
    torch.testing.assert_close(terms_MM[1, 1].cpu(), (uniform * (B - 1) + last) / B, rtol=1e-3, atol=0)
    assert (grad_MBK[0, :, -1] < 0).all() and not (grad_MBK[0, :, 0] < 0).any()
