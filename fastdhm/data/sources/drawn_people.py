"""Drawn people seen by several cameras: a re-identification set for tests and first steps. It needs no file or network.

A person has a build, skin, hair, clothes with a pattern, shoes and perhaps a bag. A camera has a background, a light, a
tint and a view. Each image has its own pose, position and noise. Backgrounds, light and tint differ more between
cameras than clothes do between many people: comparing pixels finds the camera, and a trained network the person.

Legend: N samples, H height, W width, C channels.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastdhm.data.sources.arrays import ArraySource
from fastdhm.data.sources.source import number_classes

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

CAMERAS = 4
IMAGES_PER_CAMERA = 4  # of each identity
CANVAS_HW = (256, 128)  # drawn in this size, then scaled down
SKIN = ((244, 210, 184), (224, 176, 140), (190, 134, 96), (140, 92, 62), (92, 58, 40))
HAIR = ((28, 22, 20), (70, 46, 30), (130, 86, 46), (214, 176, 96), (150, 60, 34), (168, 168, 168))
PATTERNS = ("plain", "plain", "rings", "stripes", "halves", "sash")
LEGS = ("trousers", "trousers", "shorts", "skirt")
HEADS = ("short", "long", "bun", "cap", "bald")
PICTURE, PERSON, STRANGER, VIEW = 1, 2, 3, 4
BAGS = ("none", "none", "backpack", "satchel", "handbag")


class SyntheticReidSource(ArraySource):
    """A split of the drawn set, in memory, with the identity and camera of each image."""

    def __init__(self, split: str, seen: list[tuple[int, int, int]], size_HW: tuple[int, int], seed: int):
        """``seen`` lists identity (0: a distractor, -1: junk), camera and take of every image."""
        self.ids_N, self.cams_N, _ = (np.array(column, dtype=np.int64) for column in zip(*seen, strict=True))
        target_N, classes = number_classes(split, self.ids_N, self.cams_N)
        image_NHWC = np.stack([np.asarray(picture(*one, size_HW=size_HW, seed=seed)) for one in seen])
        super().__init__("reid-synthetic", split, image_NHWC, target_N, classes)


def synthetic_reid(
    train_identities: int, test_identities: int, size_HW: tuple[int, int] = (128, 64), seed: int = 0
) -> tuple[SyntheticReidSource, SyntheticReidSource, SyntheticReidSource]:
    """Train, query and gallery: 16 images of each identity, 4 from each camera; the same at every call.

    The numbers of the test identities follow those of the training identities. For each test identity, the first take
    of every camera is a query, and the other takes are in the gallery. The gallery also has distractors (identity 0), a
    fourth as many as test identities, and junk (-1), an eighth as many; each with one image per camera.
    """
    takes = [(camera, take) for camera in range(1, CAMERAS + 1) for take in range(IMAGES_PER_CAMERA)]
    train = range(1, train_identities + 1)
    test = range(train_identities + 1, train_identities + test_identities + 1)
    query = [(identity, camera, take) for identity in test for camera, take in takes if take == 0]
    gallery = [(identity, camera, take) for identity in test for camera, take in takes if take > 0]
    for identity, count in ((0, test_identities // 4), (-1, test_identities // 8)):
        gallery += [(identity, 1 + n % CAMERAS, n) for n in range(CAMERAS * count)]
    learnt = [(identity, camera, take) for identity in train for camera, take in takes]
    return (
        SyntheticReidSource("train", learnt, size_HW, seed),
        SyntheticReidSource("query", query, size_HW, seed),
        SyntheticReidSource("gallery", gallery, size_HW, seed),
    )


@dataclass(frozen=True)
class _Person:
    """What stays the same in all images of a person."""

    tall: float
    broad: float
    skin: tuple
    hair: tuple
    top: tuple
    trim: tuple
    bottom: tuple
    shoes: tuple
    bag_colour: tuple
    pattern: str
    legs: str
    head: str
    bag: str

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> _Person:
        top = rng.random()
        return cls(
            tall=rng.uniform(0.86, 1.0),
            broad=rng.uniform(0.85, 1.2),
            skin=_pick(rng, SKIN),
            hair=_pick(rng, HAIR),
            top=_cloth(rng, top),
            trim=_cloth(rng, top + rng.uniform(0.3, 0.7)),
            bottom=_cloth(rng, rng.random(), dark=True),
            shoes=_cloth(rng, rng.random(), dark=rng.random() < 0.6),
            bag_colour=_cloth(rng, rng.random()),
            pattern=_pick(rng, PATTERNS),
            legs=_pick(rng, LEGS),
            head=_pick(rng, HEADS),
            bag=_pick(rng, BAGS),
        )


def picture(identity: int, camera: int, take: int, *, size_HW: tuple[int, int], seed: int) -> Image:
    """One image, a pure function of its arguments. Junk shows a part of a person, or nobody."""
    from PIL import Image, ImageDraw

    rng = _draws(PICTURE, seed, identity + 1, camera, take)
    own = (PERSON, seed, identity) if identity > 0 else (STRANGER, seed, identity + 1, take)
    person = _Person.drawn(_draws(*own))
    view = _draws(VIEW, seed, camera)
    image = Image.fromarray(_background(view, rng))
    layer = Image.new("RGBA", (CANVAS_HW[1], CANVAS_HW[0]))
    _draw_person(ImageDraw.Draw(layer), person, rng)
    if rng.random() < 0.5:  # walking the other way
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale = view.uniform(0.86, 1.02) * rng.uniform(0.94, 1.06) * (2.2 if identity == -1 else 1)
    shear = view.uniform(-0.08, 0.08)  # the camera is tilted
    centre_x, centre_y = 64 + rng.uniform(-8, 8), 128 + rng.uniform(-6, 6)
    if identity == -1:
        centre_x, centre_y = centre_x + rng.choice([-70, 70]), centre_y + rng.uniform(-110, 110)
    inverse = (1 / scale, shear, 64 - centre_x / scale - shear * centre_y, 0, 1 / scale, 128 - centre_y / scale)
    layer = layer.transform(layer.size, Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR)
    image.paste(layer, mask=layer)
    return _exposed(image.resize(size_HW[::-1], Image.Resampling.BOX), view, rng)


def _draws(kind: int, *what: int) -> np.random.Generator:
    """A random stream for each thing of each kind.

    numpy pads short seeds with zeros: without the kind in front, a person, an image and a view could share a stream.
    """
    return np.random.default_rng([kind, *what])


def _pick(rng: np.random.Generator, choices: tuple):
    return choices[rng.integers(len(choices))]


def _cloth(rng: np.random.Generator, hue: float, dark: bool = False) -> tuple[int, int, int]:
    """A colour; one time in four a grey, from black to white."""
    value = rng.uniform(0.15, 0.55) if dark else rng.uniform(0.45, 0.95)
    saturation = 0.04 if rng.random() < 0.25 else rng.uniform(0.5, 0.9)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(view: np.random.Generator, rng: np.random.Generator) -> np.ndarray:
    """A wall above a floor, each with its own texture, shifted a little from picture to picture."""
    y, x = np.mgrid[: CANVAS_HW[0], : CANVAS_HW[1]].astype(np.float32)
    x, y = x + rng.uniform(0, 60), y + rng.uniform(-8, 8)
    wall_C, floor_C, line_C = (np.array(_cloth(view, view.random())) * 0.75 + 40 for _ in range(3))
    horizon = view.uniform(120, 190)
    pitch, thick = view.uniform(18, 44), view.uniform(3, 9)
    across, along = view.random(2) < 0.6
    lines = ((x % pitch < thick) & across) | (((y + 0.3 * x * along) % (1.4 * pitch) < thick) & along)
    wall_HWC = np.where(lines[..., None], line_C, wall_C) * (0.75 + 0.25 * np.sin(y / 256 + x / 90))[..., None]
    floor_HWC = floor_C * (0.7 + 0.3 * (y[..., None] - horizon) / 120) + 12 * (np.sin(x / 5) > 0.8)[..., None]
    return np.clip(np.where((y < horizon)[..., None], wall_HWC, floor_HWC), 0, 255).astype(np.uint8)


def _draw_person(draw: ImageDraw, person: _Person, rng: np.random.Generator) -> None:
    """Upright in the middle of the canvas, walking to the right, seen from the front or the back."""
    stride, swing, back = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.random() < 0.4
    ground, height = 244, 226 * person.tall
    broad = 15 * person.broad
    hip, shoulder, head = (ground - part * height for part in (0.47, 0.81, 0.91))
    bag_after = back or person.bag != "backpack"  # seen from the front, a backpack is behind the person
    if person.head == "long":
        draw.rounded_rectangle((50, head - 17, 78, shoulder + 22), 11, fill=person.hair)
    for side in (-1, 1):  # legs, then arms
        foot = 64 + side * (0.4 * broad + 14 * abs(stride)), ground - 4 - (3 * abs(stride) if side == 1 else 0)
        _draw_leg(draw, person, (64 + side * 0.45 * broad, hip), foot)
    if person.legs == "skirt":
        flare = 7 * person.broad
        waist, hem = [(64 - broad, hip - 6), (64 + broad, hip - 6)], hip + 48
        draw.polygon([*waist, (64 + broad + flare, hem), (64 - broad - flare, hem)], fill=person.bottom)
    for side in (-1, 1):
        elbow = (64 + side * (broad + 8), shoulder + 38)
        hand = (64 + side * (broad + 6) + 10 * swing * side, hip + 8)
        sleeve = [(64 + side * broad, shoulder + 8), elbow, hand]
        draw.line(sleeve, fill=_shade(person.top, 0.85), width=11, joint="curve")
        draw.ellipse((hand[0] - 5, hand[1] - 5, hand[0] + 5, hand[1] + 5), fill=person.skin)
    if not bag_after:
        draw.rectangle((64 - broad - 5, shoulder + 10, 64 + broad + 5, hip - 26), fill=person.bag_colour)
    _draw_top(draw, person, (64 - broad - 2, shoulder, 64 + broad + 2, hip + 2))
    draw.rectangle((59, head + 8, 69, shoulder + 4), fill=_shade(person.skin, 0.85))
    _draw_head(draw, person, head, back)
    if bag_after:
        _draw_bag(draw, person, broad, shoulder, hip)


def _shade(colour: tuple, share: float) -> tuple:
    return tuple(round(share * channel) for channel in colour)


def _draw_leg(draw: ImageDraw, person: _Person, top: tuple, foot: tuple) -> None:
    bare = {"trousers": 1.0, "shorts": 0.45, "skirt": 0.3}[person.legs]
    knee = top[0] + bare * (foot[0] - top[0]), top[1] + bare * (foot[1] - top[1])
    draw.line([top, foot], fill=person.skin, width=11)
    draw.line([top, knee], fill=person.bottom, width=15)
    draw.ellipse((foot[0] - 8, foot[1] - 6, foot[0] + 12, foot[1] + 5), fill=person.shoes)


def _draw_top(draw: ImageDraw, person: _Person, box: tuple) -> None:
    left, top, right, bottom = box
    draw.rounded_rectangle(box, 9, fill=person.top)
    if person.pattern == "rings":
        for y in np.arange(top + 10, bottom - 6, 16):
            draw.rectangle((left, y, right, y + 6), fill=person.trim)
    elif person.pattern == "stripes":
        for x in np.arange(left + 5, right - 3, 10):
            draw.rectangle((x, top + 4, x + 3, bottom), fill=person.trim)
    elif person.pattern == "halves":
        draw.rectangle((left, (top + bottom) / 2, right, bottom), fill=person.trim)
    elif person.pattern == "sash":
        draw.polygon([(left, top + 8), (left + 12, top), (right, bottom - 14), (right, bottom)], fill=person.trim)


def _draw_head(draw: ImageDraw, person: _Person, y: float, back: bool) -> None:
    face = (52, y - 15, 76, y + 14)
    draw.ellipse(face, fill=person.hair if back and person.head != "bald" else person.skin)
    if person.head in ("short", "long", "bun"):
        draw.pieslice((51, y - 17, 77, y + 13), 180, 360, fill=person.hair)
    if person.head == "bun":
        draw.ellipse((57, y - 26, 71, y - 12), fill=person.hair)
    elif person.head == "cap":
        draw.pieslice((50, y - 19, 78, y + 11), 180, 360, fill=person.trim)
        draw.rectangle((64, y - 6, 86, y - 2), fill=person.trim)


def _draw_bag(draw: ImageDraw, person: _Person, broad: float, shoulder: float, hip: float) -> None:
    if person.bag == "backpack":
        draw.rounded_rectangle((64 - broad + 3, shoulder + 6, 64 + broad - 3, hip - 14), 7, fill=person.bag_colour)
    elif person.bag == "satchel":
        draw.line([(64 - broad, shoulder + 4), (64 + broad + 4, hip)], fill=_shade(person.bag_colour, 0.7), width=4)
        draw.rectangle((64 + broad - 8, hip - 6, 64 + broad + 14, hip + 18), fill=person.bag_colour)
    elif person.bag == "handbag":
        draw.rectangle((64 - broad - 22, hip + 16, 64 - broad, hip + 36), fill=person.bag_colour)


def _exposed(image: Image, view: np.random.Generator, rng: np.random.Generator) -> Image:
    """The camera's tint, gain and gamma, with a little change for each image; then blur and noise."""
    from PIL import Image as Images
    from PIL import ImageFilter

    image = image.filter(ImageFilter.GaussianBlur(view.uniform(0.6, 1.6) * image.height / CANVAS_HW[0]))
    tint_C = view.uniform(0.72, 1.0, 3)
    gain = view.uniform(0.55, 1.15) * rng.uniform(0.88, 1.12)
    gamma = view.uniform(0.8, 1.3)
    light_HWC = 255 * gain * tint_C * (np.asarray(image, dtype=np.float32) / 255) ** gamma
    noise_HWC = rng.normal(0, view.uniform(3, 9), light_HWC.shape)
    return Images.fromarray(np.clip(light_HWC + noise_HWC, 0, 255).astype(np.uint8))
