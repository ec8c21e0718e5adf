"""``fastdhm models``: the networks by family, the cost of each of their parts, and the names of others."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby

from rich import box
from rich.table import Table
from rich.text import Text

from fastdhm import models
from fastdhm.system.console import Console
from fastdhm.system.environment import installed

WIDTH = 100  # columns at most


def list_models(
    names: Sequence[str] = (),
    *,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    branches: Sequence[str] | None = None,
    as_json: bool = False,
    console: Console | None = None,
) -> None:
    """Print the cost of the networks ``names`` (none: those of the paper), in a table per family, as soon as counted.

    The other arguments are those of ``models.inventory``.

    Raises:
        ValueError: as ``models.inventory``.
    """
    console = console or Console()
    for name in names:  # report a wrong name before anything is counted
        models.check(name, branches)
    asked = list(dict.fromkeys(names)) or list(_listed())
    costs = ((name, models.inventory(name, num_classes, image_size, branches)) for name in asked)
    if as_json:
        console.result(json.dumps({name: asdict(cost) | {"step_ratio": cost.step_ratio} for name, cost in costs}))
        return
    for (family, _, _), rows in groupby(costs, lambda row: _group(*row)):
        _print_family(console, family, list(rows))
    notes = ["MACs: multiply-adds for one image. step: those of a DHM step over those of the baseline's."]
    if not names:
        notes.append("Other depths and networks by name: fastdhm models resnet56 wrn-22-4 torchvision:vgg16_bn")
    console.result("\n".join(notes))


def _listed() -> Iterator[str]:
    """The examples of all families, without those of timm if it is not installed."""
    for family in models.FAMILIES:
        yield from (name for name in family.examples if not name.startswith("timm:") or installed("timm"))


def _group(name: str, cost: models.Inventory) -> tuple[models.Family, tuple[int, int], int]:
    return models.family_of(name), cost.image_size, cost.num_classes


def _print_family(console: Console, family: models.Family, rows: list[tuple[str, models.Inventory]]) -> None:
    cost = rows[0][1]
    size = "{}x{}".format(*cost.image_size)
    about = f", {size} pixels, {cost.num_classes:,} classes; names: {family.rule}"
    table = Table(
        title=Text.assemble((family.name, "bold"), about),
        title_justify="left", title_style="", box=box.SIMPLE_HEAD, padding=0, width=min(console.width, WIDTH),
    )  # fmt: skip
    table.add_column("network", no_wrap=True, ratio=1)
    for branch in cost.branches:
        table.add_column(f"{branch}\nparams", justify="right", no_wrap=True)
        table.add_column("\nMACs", justify="right", no_wrap=True)
    table.add_column("\nstep", justify="right", no_wrap=True)
    for name, cost in rows:
        cells = [cell for part in cost.branches.values() for cell in part.cells()]
        table.add_row(name, *cells, f"{cost.step_ratio:.2f}x")
    console.result(table)
