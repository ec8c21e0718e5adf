"""Curves and heat maps as SVG inside a page: its style sheet colours them, light or dark.

matplotlib's SVG has fixed colours and hundreds of kilobytes; a page of ten figures is drawn here in milliseconds.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 420, 250  # near a phone's own width, so that the text keeps its size there
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 34
POINTS = 300  # of a curve at most; more are averaged
COLOURS = 6

Points = Sequence[tuple[float, float]]


def curves(series: Mapping[str, Points], x_label: str, y_label: str, *, from_zero: bool = True) -> str:
    """A figure of named curves; values that are not finite are gaps. A name's last word picks its colour, so that
    ``train B0`` and ``B0`` share one; ``train`` is thin. Empty if no curve has a value."""
    drawn = {name: thinned(points) for name, points in series.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not drawn:
        return ""
    every = [point for points in drawn.values() for point in points]
    x_ticks = ticks(min(0.0, *(x for x, _ in every)), max(x for x, _ in every))
    y_ticks = ticks(*([0.0] if from_zero else []), *_ends([y for _, y in every]))
    colours = {word: n % COLOURS for n, word in enumerate(dict.fromkeys(name.split()[-1] for name in drawn))}
    parts, legend = [_axes(x_ticks, y_ticks, x_label, y_label)], []
    for name, points in drawn.items():
        style = f"c{colours[name.split()[-1]]}" + " thin" * name.startswith("train ")
        placed = [(_at(x, x_ticks, LEFT, WIDTH - RIGHT), _at(y, y_ticks, HEIGHT - BOTTOM, TOP)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline class="line {style}" points="{path}"><title>{escape(name)}</title></polyline>')
        if len(points) <= 40 and "thin" not in style:
            for (x, y), (at_x, at_y) in zip(points, placed, strict=True):
                told = f"{name}: {number(y)} at {x_label} {round(x, 2):g}"
                parts.append(f'<circle class="dot {style}" cx="{at_x:.1f}" cy="{at_y:.1f}" r="2.5">'
                             f"<title>{escape(told)}</title></circle>")  # fmt: skip
        legend.append(f'<span><i class="key {style}"></i>{escape(name)}</span>')
    return _figure(parts, HEIGHT, f"{y_label} over {x_label}", legend)


def heat_map(rows: Mapping[str, Points], x_label: str, what: str) -> str:
    """A figure with a row of cells for each name, dark where the value is high, on one logarithmic scale for all."""
    found = {name: thinned(points, 48) for name, points in rows.items()}
    found = {name: points for name, points in found.items() if points}
    values = [y for points in found.values() for _, y in points if y > 0]
    if not values:
        return ""
    low, high = math.log(max(min(values), max(values) / 1e4)), math.log(max(values))
    left, step = 70, 18
    height = TOP + step * len(found) + BOTTOM
    x_ticks = ticks(0.0, max(x for points in found.values() for x, _ in points))
    parts = []
    for n, (name, points) in enumerate(found.items()):
        top, before = TOP + n * step, 0.0
        parts.append(f'<text class="end" x="{left - 5}" y="{top + 13}">{escape(name)}</text>')
        for x, y in points:
            strength = 0.0 if y <= 0 else 1.0 if high <= low else max(0.0, (math.log(y) - low) / (high - low))
            begin, end = (_at(place, x_ticks, left, WIDTH - RIGHT) for place in (before, x))
            parts.append(f'<rect class="cell" x="{begin:.1f}" y="{top}" width="{max(0.5, end - begin):.1f}" '
                         f'height="{step - 2}" fill-opacity="{0.04 + 0.96 * strength:.2f}">'
                         f"<title>{escape(name)}: {number(y)} at {x_label} {round(x, 2):g}</title></rect>")  # fmt: skip
            before = x
    for tick in x_ticks:
        x = _at(tick, x_ticks, left, WIDTH - RIGHT)
        parts.append(f'<text class="mid" x="{x:.1f}" y="{height - BOTTOM + 14}">{tick:g}</text>')
    parts.append(f'<text class="mid" x="{(left + WIDTH) / 2}" y="{height - 4}">{escape(x_label)}</text>')
    ends = f"<span>{number(math.exp(low))} (pale) to {number(math.exp(high))} (dark), logarithmic</span>"
    return _figure(parts, height, f"{what} over {x_label}", [ends])


def matrix(rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]], what: str) -> str:
    """A figure of counts, a row for each true class: its own column is green, the others are red, the darker the
    larger their share of the row."""
    left, top = 92, 78
    step = (WIDTH - left - 36) / len(columns)  # the last name leans to the right
    parts = []
    for c, name in enumerate(columns):
        place = f"translate({left + (c + 0.7) * step:.1f} {top - 5}) rotate(-60)"
        parts.append(f'<text transform="{place}">{_cut(name)}</text>')
    for r, (name, row) in enumerate(zip(rows, counts, strict=True)):
        y, total = top + r * step, max(1, sum(row))
        parts.append(f'<text class="end" x="{left - 5}" y="{y + step / 2 + 4:.1f}">{_cut(name)}</text>')
        for c, count in enumerate(row):
            x, strength = left + c * step, math.sqrt(count / total)  # rare mistakes are seen too
            told = f"{name} taken for {columns[c]}: {count:,} of {sum(row):,}"
            parts.append(f'<rect class="{"right" if r == c else "wrong"} cell" x="{x:.1f}" y="{y:.1f}" '
                         f'width="{step - 1:.1f}" height="{step - 1:.1f}" fill-opacity="{0.04 + 0.8 * strength:.2f}">'
                         f"<title>{escape(told)}</title></rect>")  # fmt: skip
            if count and step > 6 * len(str(count)):
                at = f'x="{x + step / 2:.1f}" y="{y + step / 2 + 3:.1f}"'
                parts.append(f'<text class="mid count" {at}>{count}</text>')
    return _figure(parts, round(top + step * len(rows) + 4), what, ["<span>rows: true; columns: predicted</span>"])


def _cut(name: str) -> str:
    """A name beside a matrix: cut where it is long, whole where the pointer rests on it."""
    short = name if len(name) <= 12 else f"{name[:11]}…"
    return f"{escape(short)}<title>{escape(name)}</title>"


def thinned(points: Points, most: int = POINTS) -> list[tuple[float, float]]:
    """At most ``most`` points: the means of neighbours. Values that are not finite are left out."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = math.ceil(len(finite) / most) if finite else 1
    groups = (finite[n : n + size] for n in range(0, len(finite), size))
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def ticks(*values: float) -> list[float]:
    """Round numbers, four to seven, around ``values``."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 6)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, max(last, first + 1) + 1)]


def number(value: float) -> str:
    """Three digits, as a person writes them."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _at(value: float, marks: Sequence[float], begin: float, end: float) -> float:
    return begin + (value - marks[0]) / (marks[-1] - marks[0]) * (end - begin)


def _axes(x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> str:
    parts = []
    for tick in y_ticks:
        y = _at(tick, y_ticks, HEIGHT - BOTTOM, TOP)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
                     f'<text class="end" x="{LEFT - 5}" y="{y + 4:.1f}">{number(tick)}</text>')  # fmt: skip
    for tick in x_ticks:
        x = _at(tick, x_ticks, LEFT, WIDTH - RIGHT)
        anchor = "end" if tick == x_ticks[-1] else "mid"
        parts.append(f'<text class="{anchor}" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}">{number(tick)}</text>')
    parts.append(f'<text class="mid" x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 4}">{escape(x_label)}</text>')
    return "".join(parts)


def _figure(parts: Sequence[str], height: int, label: str, legend: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">'
    caption = f"<figcaption>{''.join(legend)}</figcaption>"
    return f"<figure><h3>{escape(label.partition(' over ')[0])}</h3>{caption}{head}{''.join(parts)}</svg></figure>"
