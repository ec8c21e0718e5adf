"""Pictures of results: the first entries of some rankings, and the CMC curve.

Legend: Q queries, K entries of a ranking, R ranks, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from fastdhm.system.files import replacing
from fastdhm.system.plotting import save_figure

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

RIGHT, WRONG, INK, FAINT = "#1a9641", "#d7191c", "#222222", "#777777"
CELL_HW = (192, 96)
FRAME, GAP, LABEL, MARGIN, HEADER = 5, 8, 18, 16, 34


class Seen(NamedTuple):
    """One image with its identity and camera."""

    image: Image
    identity: int
    camera: int


def ranking_picture(
    path: Path,
    index_QK: Tensor,
    query: Callable[[int], Seen],
    gallery: Callable[[int], Seen],
    queries: Sequence[int],
    ap_Q: Tensor | None = None,
) -> None:
    """Write a PNG with a row for each of ``queries``: the query, then its nearest entries, framed green or red.

    Green frames mark the query's identity, red frames all others.

    Args:
        index_QK: gallery indices, nearest first, -1 for none (``Ranking.index_QK``).
        query: gives the ``q``-th query with its identity and camera.
        gallery: likewise for the gallery.
        queries: which queries to show, in this order.
        ap_Q: if given, the average precision of each query is written below it.

    Raises:
        ValueError: no query to show, or a number that is not a query.
    """
    from PIL import Image, ImageDraw

    wrong = [q for q in queries if not 0 <= q < len(index_QK)]
    if wrong or not len(queries):
        raise ValueError(f"queries to show are {list(queries)}: must be at least one, each in [0, {len(index_QK)})")
    K = index_QK.shape[1]
    step_x, step_y = CELL_HW[1] + 2 * FRAME + GAP, CELL_HW[0] + 2 * FRAME + LABEL + GAP
    size = 2 * MARGIN + (K + 1) * step_x + GAP, HEADER + MARGIN + len(queries) * step_y
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, 10), "query", fill=INK, font=_font(14))
    for k in range(K):
        draw.text((MARGIN + GAP * 2 + (k + 1) * step_x, 10), str(k + 1), fill=INK, font=_font(14))
    for row, q in enumerate(queries):
        top, asked = HEADER + row * step_y, query(q)
        precision = f"  AP {ap_Q[q].item():.2f}" if ap_Q is not None else ""
        _cell(sheet, draw, (MARGIN, top), asked, INK, f"{_who(asked)}{precision}")
        for k, index in enumerate(index_QK[q].tolist()):
            if index >= 0:
                found = gallery(index)
                colour = RIGHT if found.identity == asked.identity else WRONG
                _cell(sheet, draw, (MARGIN + GAP * 2 + (k + 1) * step_x, top), found, colour, _who(found))
    with replacing(Path(path)) as temporary:
        sheet.save(temporary, "PNG")


def _cell(sheet: Image, draw: ImageDraw, corner: tuple[int, int], seen: Seen, colour: str, label: str) -> None:
    x, y = corner
    height, width = CELL_HW
    draw.rectangle((x, y, x + width + 2 * FRAME - 1, y + height + 2 * FRAME - 1), fill=colour)
    sheet.paste(seen.image.convert("RGB").resize((width, height)), (x + FRAME, y + FRAME))
    draw.text((x, y + height + 2 * FRAME + 2), label, fill=INK, font=_font(12))


def _who(seen: Seen) -> str:
    names = {0: "distractor", -1: "junk"}
    return f"{names.get(seen.identity, f'{seen.identity:04}')}  c{seen.camera}"


def _font(size: int):
    from PIL import ImageFont

    return ImageFont.load_default(size)


def cmc_plot(
    path: Path, cmc_R_by_name: Mapping[str, Tensor], title: str = "", mean_ap: Mapping[str, float] | None = None
):
    """Write a PNG with the CMC curve of each named result; the legend has its rank-1, and its mAP if given."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.4), constrained_layout=True)
    lowest = 1.0
    for name, cmc_R in cmc_R_by_name.items():
        ranks = range(1, len(cmc_R) + 1)
        label = f"{name}: rank-1 {100 * cmc_R[0].item():.1f}%"
        if mean_ap and name in mean_ap:
            label += f", mAP {100 * mean_ap[name]:.1f}%"
        axis.plot(ranks, (100 * cmc_R).tolist(), "o-", ms=3, lw=1.6, label=label)
        lowest = min(lowest, cmc_R[0].item())
    axis.set(xlabel="rank", ylabel="queries with a match, %", ylim=(max(0, 100 * lowest - 5), 101), xlim=(0.5, None))
    ticks = [rank for rank in (1, 5, 10, 20, 30, 40, 50, 100) if rank <= max(map(len, cmc_R_by_name.values()))]
    axis.set_xticks(ticks)
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=9, frameon=False)
    axis.set_title(title)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    save_figure(figure, Path(path), dpi=120)
    plt.close(figure)
