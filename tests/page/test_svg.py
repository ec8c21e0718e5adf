"""Figures: whole SVG whatever the values are, and what stands in their legends."""

import math
import xml.etree.ElementTree as ET

import pytest

from fastdhm.page.svg import curves, heat_map, matrix, thinned, ticks


def parsed(figure):
    return ET.fromstring(figure)


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [5.0, 5.0], [1e-9, 1e9], [math.nan, 2.0], [-3.0, 4.0]], ids=str)
@pytest.mark.parametrize("draw", [curves, heat_map])
def test_any_values_give_whole_figures(draw, values):
    text = draw({'a "<&> name': list(enumerate(values, 1))}, "epoch", "error")
    assert "nan" not in text
    assert not text or "name" in "".join(parsed(text).itertext())


@pytest.mark.parametrize("draw", [curves, heat_map])
@pytest.mark.parametrize("points", [[], [(1.0, math.nan)], [(1.0, math.inf)]], ids=str)
def test_nothing_to_draw_is_no_figure(draw, points):
    assert draw({"a": points}, "epoch", "error") == ""


def test_a_branch_has_one_colour_and_its_training_is_thin():
    points = [(1.0, 2.0), (2.0, 1.0)]
    lines = parsed(curves({"train B0": points, "train B1": points, "B0": points}, "epoch", "error")).iter("polyline")
    assert [line.get("class") for line in lines] == ["line c0 thin", "line c1 thin", "line c0"]


def test_the_highest_term_is_the_darkest():
    cells = parsed(heat_map({"B0": [(1.0, 0.1), (2.0, 10.0)]}, "epoch", "terms")).iter("rect")
    assert [cell.get("fill-opacity") for cell in cells] == ["0.04", "1.00"]


def test_many_points_become_their_means():
    points = thinned([(float(n), float(n % 2)) for n in range(1000)], 100)
    assert len(points) == 100 and {y for _, y in points} == {0.5}


@pytest.mark.parametrize(
    ("values", "found"), [((0.0, 3.0), [0, 0.5, 1, 1.5, 2, 2.5, 3]), ((0.0, 97.0), [0, 20, 40, 60, 80, 100])]
)
def test_ticks(values, found):
    assert ticks(*values) == pytest.approx(found)


@pytest.mark.parametrize("count", [1, 3, 16])
def test_a_matrix_has_a_cell_for_each_pair_and_its_diagonal_is_right(count):
    names, counts = [f'{n}"<&> and a long name' for n in range(count)], [[n] * (count + 1) for n in range(count)]
    drawn = parsed(matrix(names, [*names, "all others"], counts, "confusion"))
    cells = list(drawn.iter("rect"))
    assert len(cells) == count * (count + 1)
    assert [cell.get("class") for cell in cells].count("right cell") == count
    assert cells[0].get("fill-opacity") == "0.04", "a class without images"
