"""Every operation against torchvision's own v2 transforms, and what a batch of all of them keeps.

Legend: B images, H height, W width, C channels.
"""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode, functional

from fastdhm.data.augment.operations import apply_rounds
from fastdhm.data.augment.policy import LEVELS, OPERATIONS, POLICY_OPERATIONS, SIGNED, Policy, Round, strengths

NAMES = {"colour": "Color", "autocontrast": "AutoContrast"}
SIZES = ((32, 32), (33, 20))


def images(B, size_HW=(32, 32)):
    """Soft pictures with a full range: in noise every pixel of a turned image would be on its own."""
    noise_BCHW = torch.rand(B, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 300 - 22
    soft_BCHW = torch.nn.functional.interpolate(noise_BCHW, size_HW, mode="bicubic").clamp(0, 255)
    return soft_BCHW.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def theirs(kind, image_BHWC, name, strength):
    """torchvision's policy with one operation at one strength."""
    transform = kind(interpolation=InterpolationMode.BILINEAR)
    their_name = NAMES.get(name, "".join(part.capitalize() for part in name.split("_")))
    done = transform._apply_image_or_video_transform(
        image_BHWC.permute(0, 3, 1, 2), their_name, strength, InterpolationMode.BILINEAR, transform._fill
    )
    return done.permute(0, 2, 3, 1)


def their_strength(kind, name, level, size_HW):
    their_name = NAMES.get(name, "".join(part.capitalize() for part in name.split("_")))
    values = kind._AUGMENTATION_SPACE[their_name][0](LEVELS, *size_HW)
    return 0.0 if values is None else float(values[level])


@pytest.mark.parametrize("level", [1, 9, 22, 30])
@pytest.mark.parametrize("size_HW", SIZES, ids=str)
@pytest.mark.parametrize("kind", [v2.TrivialAugmentWide, v2.RandAugment], ids=["trivial", "rand"])
@pytest.mark.parametrize("name", POLICY_OPERATIONS)
def test_an_operation_is_torchvisions(name, kind, size_HW, level):
    """At both signs, up to one level of 255, and in all but few pixels to the bit."""
    number, image_BHWC = POLICY_OPERATIONS.index(name), images(6, size_HW)
    policy = Policy(1, None if kind is v2.TrivialAugmentWide else level)
    strength, given = strengths(policy, size_HW)[number, level], their_strength(kind, name, level, size_HW)
    if not name.startswith("translate"):  # whole pixels, which torchvision cuts off later
        assert strength == pytest.approx(255 * given if name == "solarize" else given, rel=1e-6)
    sign_B = np.array([1, -1] * 3) if SIGNED[number] else np.ones(6)
    got = apply_rounds(image_BHWC, [Round(np.full(6, number), strength * sign_B)])
    for b, sign in enumerate(sign_B):
        expected = theirs(kind, image_BHWC[b : b + 1], name, sign * given)
        off = (got[b : b + 1].int() - expected.int()).abs()
        assert off.max() <= 1
        assert (off > 0).float().mean() < 0.04  # sums that are whole numbers, but for the last bit


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.07, 0.5])
def test_hue_and_grey_are_torchvisions(shift):
    image_BHWC = images(4)
    hue, grey = (Round(np.full(4, OPERATIONS.index(name)), np.full(4, shift)) for name in ("hue", "grey"))
    image_BCHW = image_BHWC.permute(0, 3, 1, 2)
    assert torch.equal(apply_rounds(image_BHWC, [hue]).permute(0, 3, 1, 2), functional.adjust_hue(image_BCHW, shift))
    expected = functional.rgb_to_grayscale(image_BCHW, num_output_channels=3)
    assert torch.equal(apply_rounds(image_BHWC, [grey]).permute(0, 3, 1, 2), expected)


def test_each_image_of_a_batch_gets_its_own():
    """All operations in one batch, in two rounds, are what each image gets alone; the images given stay."""
    B, rng = 64, np.random.default_rng(0)
    image_BHWC, table_OL = images(B, (20, 24)), strengths(Policy(2, None), (20, 24))
    number_B = np.arange(B) % len(POLICY_OPERATIONS)
    rounds = [
        Round(order_B, table_OL[order_B, rng.integers(LEVELS, size=B)]) for order_B in (number_B, number_B[::-1].copy())
    ]
    before_BHWC = image_BHWC.clone()
    got = apply_rounds(image_BHWC, rounds)
    assert torch.equal(image_BHWC, before_BHWC)
    assert got.is_contiguous() and got.dtype == torch.uint8
    for b in range(B):
        alone = [Round(drawn.operation_B[b : b + 1], drawn.strength_B[b : b + 1]) for drawn in rounds]
        off = (apply_rounds(image_BHWC[b : b + 1], alone).int() - got[b : b + 1].int()).abs()
        assert off.max() <= 1 and (off > 0).float().mean() < 0.005


@pytest.mark.parametrize("size_HW", [(1, 1), (2, 5), (1, 9)], ids=str)
def test_tiny_images(size_HW):
    B = len(OPERATIONS)
    image_BHWC, drawn = images(B, size_HW), Round(np.arange(B), np.full(B, 0.5))
    assert apply_rounds(image_BHWC, [drawn]).shape == image_BHWC.shape


def test_a_flat_image_stays_flat():
    B = len(OPERATIONS)
    image_BHWC, drawn = torch.full((B, 8, 8, 3), 255, dtype=torch.uint8), Round(np.arange(B), np.full(B, 0.4))
    inner = apply_rounds(image_BHWC, [drawn])[:, 3:5, 3:5]
    assert (inner == inner[:, :1, :1]).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_does_the_same_and_the_host_does_not_wait():
    B = 10 * len(OPERATIONS)
    number_B, rng = np.arange(B) % len(OPERATIONS), np.random.default_rng(0)
    rounds = [Round(number_B, rng.uniform(-0.5, 0.5, B)), Round(number_B[::-1].copy(), rng.uniform(-0.5, 0.5, B))]
    here, there_BHWC = apply_rounds(images(B), rounds), images(B).cuda()
    apply_rounds(there_BHWC, rounds)
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = apply_rounds(there_BHWC, rounds)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    off = (there.cpu().int() - here.int()).abs()
    assert (off > 1).float().mean() < 0.001
