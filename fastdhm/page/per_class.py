"""What a run's network does with each class, as parts of its page: from what ``per_class.result`` left beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastdhm.page.html import Shot, figures, folded, note, shots, table
from fastdhm.page.svg import curves, matrix
from fastdhm.per_class.result import read_results

LISTED = 20  # of the hardest classes
PERFECT = [(0.0, 0.0), (100.0, 100.0)]


def per_class_sections(run_dir: Path, step: int) -> dict[str, str]:
    """Sections of a run's page by heading, none if nothing is known. ``step``: of its last validation.

    The first branch is shown, the others are folded.
    """
    sections: dict[str, str] = {}
    for branch, values in read_results(run_dir).items():
        try:
            parts = _parts(branch, values, step)
        except (KeyError, TypeError, ValueError, AttributeError):  # damaged, or another version's
            continue
        for head, body in parts.items():
            sections[head] = sections[head] + folded(branch, body) if head in sections else body
    return sections


def _parts(branch: str, values: dict[str, Any], step: int) -> dict[str, str]:
    own = values["step"]
    when = "" if own is None else f" after {own:,} steps" + ", before the last validation" * (own < step)
    told = f"{branch}{when}: {values['about']}."
    measured = (
        f"Top-1 error {_percent(values['error'])}%, mean recall of the classes {_percent(values['mean_recall'])}%, "
        f"expected calibration error {_percent(values['calibration_error'])}%."
    )
    pairs = [[true, said, f"{count:,}", _percent(share)] for true, said, count, share in values["confused"]]
    hardest = [[name, f"{count:,}", *map(_percent, shares)] for name, count, *shares in values["hardest"][:LISTED]]
    less = f", the {LISTED} classes with the lowest recall" * (len(values["hardest"]) > LISTED)
    return {
        "Classes": note(told)
        + note(measured)
        + figures(_matrix(values), _reliability(values["bins"]))
        + folded(f"precision and recall{less}", table(["class", "images", "precision %", "recall %"], hardest))
        + folded("the most frequent mistakes", table(["true", "predicted", "images", "% of the class"], pairs)),
        "Sample predictions": shots([_shot(each) for each in values["samples"]]),
        "The surest mistakes": shots([_shot(each) for each in values["mistakes"]]),
    }


def _matrix(values: dict[str, Any]) -> str:
    names, counts = values["matrix"]["classes"], values["matrix"]["counts"]
    others = len(names) < values["num_classes"]
    what = f"confusion, the {len(names)} classes of the most frequent mistakes" if others else "confusion"
    cells = [row if others else row[: len(names)] for row in counts]
    return matrix(names, [*names, *["all others"] * others], cells, what)


def _reliability(bins: Sequence[Sequence[float]]) -> str:
    points = [(100 * confidence, 100 * accuracy) for _, confidence, accuracy in bins]
    return curves({"as often right as it says": PERFECT, "this network": points}, "confidence, %", "right answers, %")


def _shot(values: dict[str, Any]) -> Shot:
    right = values["true"] == values["said"]
    said = f"{values['said']}, {_percent(values['confidence'])}%"
    truth = [] if right else [(f"true: {values['true']}", "")]
    return Shot(values["image"], [(said, "right" if right else "wrong"), *truth])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"
