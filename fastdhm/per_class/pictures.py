"""Pictures of a network's answers: the confusion matrix, the reliability of its confidence, its surest mistakes.

Legend: K classes, C classes that are shown, D cells of a side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastdhm.errors import UserError
from fastdhm.per_class.measures import BINS, Answers, Calibration, Confusion
from fastdhm.system.paths import shown
from fastdhm.system.plotting import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from PIL.Image import Image

NAMED = 30  # classes that a matrix has names for; of more, those of the most frequent mistakes
CELLS = 200  # a side of the picture of a whole large matrix
COLUMNS, ROWS, SIDE = 6, 4, 256  # of the sheet of mistakes, and the largest side of an image in pixels
RIGHT, WRONG, INK = "#1a9641", "#d7191c", "#222222"


def write_pictures(
    folder: Path, answers: Answers, classes: Sequence[str], title: str, image_of: Callable[[int], Image]
) -> tuple[str, ...]:
    """Write the pictures into ``folder`` and return their names; ``image_of`` gives an image by its index.

    A network without mistakes has no sheet of them.
    """
    confusion_picture(folder / "confusion.png", Confusion.of(answers, len(classes)), classes, title)
    calibration_picture(folder / "calibration.png", Calibration.of(answers), title)
    mistaken = len(answers.mistakes()) > 0
    if mistaken:
        mistakes_picture(folder / "mistakes.png", answers, classes, title, image_of)
    else:
        (folder / "mistakes.png").unlink(missing_ok=True)
    return ("confusion.png", "calibration.png", *["mistakes.png"] * mistaken)


def short(name: str, letters: int = 24) -> str:
    """A class name on one line, cut where it is long."""
    name = shown(name)
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def confusion_picture(path: Path, confusion: Confusion, classes: Sequence[str], title: str) -> None:
    """Write the matrix as a PNG: what share of each true class was taken for which, right in green, wrong in red.

    Of more than NAMED classes, the whole without names, and beside it those of the most frequent mistakes.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    shown_C = confusion.most_confused(NAMED)
    whole, side = len(shown_C) < len(classes), 3.0 + 0.3 * len(shown_C)
    wide = [7.5, side] if whole else [side]
    figure = Figure(figsize=(sum(wide) + 1, max(side - 0.6, 6.0 * whole)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(1, len(wide), squeeze=False, width_ratios=wide)[0]
    share_CC, mistake_DD = _shares(confusion, shown_C), _pooled(confusion)
    # a square root: rare mistakes are seen beside frequent ones
    red = ScalarMappable(PowerNorm(0.5, 0, max(mistake_DD.max(), 1e-9)), "Reds")
    if whole:
        _draw_whole(axes[0], mistake_DD, len(classes), red)
    _draw_named(axes[-1], confusion, share_CC, shown_C, classes, red)
    figure.colorbar(red, ax=axes[-1], shrink=0.6, label="mistakes: share of the true class, %")
    save_figure(figure, path, dpi=110)


def _shares(confusion: Confusion, shown_C: np.ndarray) -> np.ndarray:
    """The block of these classes in percent of each row, 0 for a class without images."""
    return 100 * confusion.block(shown_C) / np.maximum(confusion.support_K[shown_C], 1)[:, None]


def _pooled(confusion: Confusion) -> np.ndarray:
    """The mistakes of all classes in percent of their true class; of a large matrix, the largest of neighbours."""
    D = min(confusion.num_classes, CELLS)
    wrong_W = confusion.confused()
    true_W, said_W = confusion.true_P[wrong_W], confusion.said_P[wrong_W]
    pooled_DD = np.zeros((D, D))
    places = true_W * D // confusion.num_classes, said_W * D // confusion.num_classes
    np.maximum.at(pooled_DD, places, 100 * confusion.count_P[wrong_W] / confusion.support_K[true_W])
    return pooled_DD


def _draw_whole(axis: Axes, mistake_DD: np.ndarray, K: int, red: ScalarMappable) -> None:
    extent = (-0.5, K - 0.5, K - 0.5, -0.5)
    axis.imshow(np.where(mistake_DD[..., None], red.to_rgba(mistake_DD), 1), extent=extent, interpolation="nearest")
    axis.plot([0, K - 1], [0, K - 1], color=RIGHT, lw=0.6)
    axis.set(xlabel="predicted, number of the class", ylabel="true, number of the class")
    axis.set_title(f"mistakes of all {K:,} classes", fontsize=9)


def _draw_named(
    axis: Axes, confusion: Confusion, share_CC: np.ndarray, shown_C: np.ndarray, classes: Sequence[str],
    red: ScalarMappable,
) -> None:  # fmt: skip
    from matplotlib import colormaps

    C, others = len(shown_C), len(shown_C) < len(classes)
    share_CC = share_CC if others else share_CC[:, :C]
    rgba_CC4 = red.to_rgba(share_CC)
    rgba_CC4[share_CC == 0] = 1
    right_C = np.arange(C)
    rgba_CC4[right_C, right_C] = colormaps["Greens"](share_CC[right_C, right_C] / 125)
    axis.imshow(rgba_CC4, interpolation="nearest")
    names = [short(classes[k]) for k in shown_C]
    axis.set_xticks(range(C + others), [*names, *["all others"] * others], rotation=90, fontsize=8)
    empty = [" (no images)" * (not confusion.support_K[k]) for k in shown_C]
    axis.set_yticks(range(C), [name + note for name, note in zip(names, empty, strict=True)], fontsize=8)
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(f"the {C} classes of the most frequent mistakes" if others else "images", fontsize=9)
    count_CC, (_, highest) = confusion.block(shown_C), red.get_clim()
    for (true, said), share in np.ndenumerate(share_CC):
        if count_CC[true, said]:
            dark = share > 75 if true == said else share > 0.5 * (highest or 1)
            text = f"{count_CC[true, said]:,}"
            axis.text(said, true, text, ha="center", va="center", fontsize=7 if len(text) < 4 else 5,
                      color="white" if dark else INK)  # fmt: skip


def calibration_picture(path: Path, calibration: Calibration, title: str) -> None:
    """Write the reliability curve as a PNG, and below it how many answers have which confidence."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 5.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = calibration.filled
    above.plot([0, 100], [0, 100], color="0.6", lw=1, ls="--", label="right as often as it says")
    label = f"expected calibration error {100 * calibration.expected_error:.2f}%"
    points = [100 * each.confidence for each in filled], [100 * each.accuracy for each in filled]
    above.plot(*points, "o-", color="C0", ms=4, label=label)
    above.set(ylabel="right answers, %", xlim=(0, 100), ylim=(0, 101))
    above.legend(loc="upper left", frameon=False, fontsize=8)
    middles = [50 * (each.low + each.high) for each in calibration.bins]
    below.bar(middles, [each.images for each in calibration.bins], width=90 / BINS, color="C0")
    below.set(xlabel="confidence, %", ylabel="images")
    for axis in (above, below):
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, dpi=120)


def mistakes_picture(
    path: Path, answers: Answers, classes: Sequence[str], title: str, image_of: Callable[[int], Image]
) -> None:
    """Write the surest mistakes as a sheet of images, the surest first: what is true, what the network says."""
    from matplotlib.figure import Figure

    places = answers.mistakes()[: COLUMNS * ROWS]
    rows = -(-len(places) // COLUMNS)
    height = 2.15 * rows + 0.5
    figure = Figure(figsize=(1.8 * COLUMNS, height))
    figure.subplots_adjust(0.01, 0, 0.99, 1 - 0.85 / height, wspace=0.08, hspace=0.3)
    figure.suptitle(f"{title}: the surest mistakes (true class, what the network says)", fontsize=10)
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.set_anchor("NW")
        axis.set_axis_off()
    for axis, n in zip(axes, places, strict=False):
        try:
            image = image_of(int(answers.index_N[n]))
        except UserError:  # it was deleted since
            axis.text(0.5, 0.5, "the image cannot be read", ha="center", fontsize=7)
        else:
            image = image.convert("RGB")
            image.thumbnail((SIDE, SIDE))
            axis.imshow(np.asarray(image))
        true, said = (short(classes[each[n]], 18) for each in (answers.target_N, answers.said_N))
        axis.set_title(f"{true}\n", fontsize=8, color=RIGHT, loc="left")
        axis.text(0, 1.02, f"{said} {100 * answers.confidence_N[n]:.1f}%", fontsize=8, color=WRONG,
                  transform=axis.transAxes, va="bottom")  # fmt: skip
    save_figure(figure, path, dpi=110)
