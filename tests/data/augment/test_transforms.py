import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from fastdhm.data.augment import transforms
from fastdhm.data.augment.transforms import DeviceTransform, shrink
from fastdhm.ops.philox import STREAM_AUGMENT, draw

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def images(B=40, H=9, W=7):
    return torch.randint(0, 256, (B, H, W, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("pad", [0, 4], ids=lambda pad: f"pad{pad}")
@pytest.mark.parametrize("flip", [False, True], ids=["as-is", "flip"])
def test_against_torchvision(pad, flip):
    image_BHWC, index_B, epoch, seed = images(), torch.arange(100, 140), 5, 3
    out = DeviceTransform(MEAN, STD, pad=pad, flip=flip, seed=seed)(image_BHWC, index_B, epoch)
    for image_HWC, i, got in zip(image_BHWC, index_B.tolist(), out, strict=True):
        top, left, mirror, _ = draw(i, epoch, STREAM_AUGMENT, seed)
        image = functional.pad(image_HWC.permute(2, 0, 1), [pad])
        image = functional.crop(image, top * (2 * pad + 1) >> 32, left * (2 * pad + 1) >> 32, 9, 7)
        image = functional.hflip(image) if flip and mirror >> 31 else image
        torch.testing.assert_close(got, functional.normalize(image / 255, MEAN, STD))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_form_of_the_output(dtype):
    image_BHWC = images()
    before = image_BHWC.clone()
    out = DeviceTransform(MEAN, STD, pad=4, flip=True)(image_BHWC, torch.arange(40), 0, dtype)
    assert out.shape == (40, 3, 9, 7)
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(image_BHWC, before)


def test_draws_are_uniform():
    """Each of 81 windows and 2 directions is as likely as the others: chi-square at p = 0.001."""
    B, side = 8000, 8
    image_BHWC = (torch.arange(side * side).view(1, side, side, 1).expand(B, -1, -1, 3) + 1).to(torch.uint8)
    out = DeviceTransform((0, 0, 0), (1 / 255,) * 3, pad=4, flip=True)(image_BHWC, torch.arange(B), 0)
    states = {tuple(image.flatten().tolist()): None for image in out[:, 0]}
    keys = {state: k for k, state in enumerate(states)}
    counts = np.bincount([keys[tuple(image.flatten().tolist())] for image in out[:, 0]])
    assert len(counts) == 162
    assert ((counts - B / 162) ** 2 / (B / 162)).sum() < 220.5


def test_epoch_may_be_a_tensor_and_matters():
    transform = DeviceTransform(MEAN, STD, pad=4, flip=True)
    image_BHWC, index_B = images(), torch.arange(40)
    third = transform(image_BHWC, index_B, 3)
    assert torch.equal(third, transform(image_BHWC, index_B, torch.tensor(3)))
    assert not torch.equal(third, transform(image_BHWC, index_B, 4))


def test_a_sample_is_drawn_alike_in_any_batch():
    transform = DeviceTransform(MEAN, STD, pad=4, flip=True)
    image_BHWC, index_B = images(), torch.arange(40)
    whole = transform(image_BHWC, index_B, 3)
    assert torch.equal(whole[11:12], transform(image_BHWC[11:12], index_B[11:12], 3))


@pytest.mark.parametrize("options", [{"pad": 4, "flip": True}, {"flip": True}, {"pad": 2}], ids=str)
def test_an_epoch_drawn_at_once_is_what_its_batches_draw(options, monkeypatch):
    monkeypatch.setattr(transforms, "AT_ONCE", 32)
    by_batch, by_epoch = (DeviceTransform(MEAN, STD, seed=3, **options) for _ in range(2))
    by_epoch.draw_epoch(140, 5)
    image_BHWC, index_B = images(), torch.arange(100, 140)
    expected = [by_batch(image_BHWC, index_B, epoch) for epoch in (5, 6)]
    monkeypatch.setattr(transforms, "draw", None)  # a batch of that epoch draws no more
    assert torch.equal(by_epoch(image_BHWC, index_B, 5), expected[0])
    monkeypatch.undo()
    assert torch.equal(by_epoch(image_BHWC, index_B, 6), expected[1]), "another epoch has draws of its own"


def test_global_generator_is_left_alone():
    state = torch.get_rng_state()
    DeviceTransform(MEAN, STD, pad=4, flip=True)(images(), torch.arange(40), 0)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("size", "side", "shrunk"),
    [((32, 32), 16, (16, 16)), ((256, 128), 96, (192, 96)), ((24, 64), 9, (9, 24)), ((9, 7), 7, (9, 7))],
    ids=str,
)
def test_shrink_keeps_the_shape(size, side, shrunk):
    image_BCHW = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    small_BCHW = shrink(image_BCHW, side)
    assert small_BCHW.shape[2:] == shrunk
    torch.testing.assert_close(small_BCHW.mean(), image_BCHW.mean(), rtol=0.02, atol=0)
    if size[0] % shrunk[0] == size[1] % shrunk[1] == 0:
        torch.testing.assert_close(small_BCHW, torch.nn.functional.avg_pool2d(image_BCHW, size[0] // shrunk[0]))


def test_state_dict_is_empty():
    assert not DeviceTransform(MEAN, STD).state_dict()


@pytest.mark.parametrize("values", [{"pad": -1}, {"std": (0, 1, 1)}], ids=["negative-pad", "zero-std"])
def test_mistakes(values):
    with pytest.raises(ValueError, match=r"is"):
        DeviceTransform(**{"mean": MEAN, "std": STD, **values})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_windows_on_the_gpu():
    transform = DeviceTransform(MEAN, STD, pad=4, flip=True)
    image_BHWC, index_B = images(), torch.arange(40)
    here = transform(image_BHWC, index_B, 3)
    there = transform.cuda()(image_BHWC.cuda(), index_B.cuda(), torch.tensor(3).cuda())
    torch.testing.assert_close(here, there.cpu())
    transform.draw_epoch(40, 3)
    assert torch.equal(transform(image_BHWC.cuda(), index_B.cuda(), 3), there)
