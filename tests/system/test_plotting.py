"""Figures whose texts are names of people's own."""

import warnings

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from fastdhm.system.plotting import save_figure


@pytest.mark.parametrize("name", ["a$b$c", "x_$1", "$\\frac{$", "$\\undefined$", "name\udce9", "10^{3", "図"])
def test_a_name_is_drawn_as_it_is(tmp_path, name):
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([1, 10], [1, 1000], label=name)
    axes.set_yscale("log")
    axes.legend()
    axes.set(title=name, xlabel=name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(figure, tmp_path / "x.png", dpi=20)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    drawn = [text for text in figure.findobj(Text) if text.get_text() == name.replace("\udce9", "\\xe9")]
    assert len(drawn) == 3
    assert not any(text.get_parse_math() for text in drawn)
    ticks = axes.yaxis.get_ticklabels(which="both")
    assert all(text.get_parse_math() for text in ticks)  # powers of ten are formulas of matplotlib's own
