"""Saves every figure: its texts are shown as they are, and its file is whole or absent."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from fastdhm.system.files import replacing
from fastdhm.system.streams import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write ``figure`` as a PNG. Its titles and legends are shown as they are, ``$`` included.

    Raises:
        ValueError: as ``files.replacing``.
    """
    from matplotlib.text import Text

    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    ticks = {label for axis in axes for label in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        text.set_usetex(False)
        if text not in ticks:  # the ticks of a logarithmic axis are formulas
            text.set_parse_math(False)
            text.set_text(visible(text.get_text()))
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
        figure.savefig(temporary, format="png", dpi=dpi)
