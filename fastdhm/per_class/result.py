"""The part of a network's answers that a page shows, as a JSON file beside the run: with a few images, and of many
classes the most telling ones."""

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdhm.errors import UserError
from fastdhm.per_class.measures import Answers, Calibration, Confusion
from fastdhm.system.files import write_text

if TYPE_CHECKING:
    from PIL.Image import Image

FOLDER, RESULT = "per-class", "result.json"  # beside a run; in its folders, one a branch
SHOWN_CLASSES, SHOWN_PAIRS, MATRIX = 100, 20, 16
SHOWN_IMAGES, SIDE, SMALL = 12, 144, 64  # sides in pixels; what is small is kept as it is


def result(
    answers: Answers, classes: Sequence[str], image_of: Callable[[int], "Image"], about: str, step: int | None
) -> dict[str, Any]:
    """What to show of ``answers``, as plain values. ``about``: whose they are, and on which images."""
    confusion, calibration = Confusion.of(answers, len(classes)), Calibration.of(answers)
    shown_C = confusion.most_confused(MATRIX)
    precision_K, recall_K, mistakes_W = confusion.precision_K, confusion.recall_K, answers.mistakes()
    values = {
        "about": about,
        "step": step,
        "images": len(answers.index_N),
        "num_classes": len(classes),
        "error": len(mistakes_W) / len(answers.index_N),
        "mean_recall": confusion.mean_recall,
        "calibration_error": calibration.expected_error,
        "too_sure": calibration.too_sure,
        "hardest": [
            [classes[k], int(confusion.support_K[k]), float(precision_K[k]), float(recall_K[k])]
            for k in confusion.hardest()[:SHOWN_CLASSES]
        ],
        "confused": [
            [classes[confusion.true_P[p]], classes[confusion.said_P[p]], int(confusion.count_P[p]),
             float(confusion.count_P[p] / confusion.support_K[confusion.true_P[p]])]
            for p in confusion.confused()[:SHOWN_PAIRS]
        ],
        "matrix": {"classes": [classes[k] for k in shown_C], "counts": confusion.block(shown_C).tolist()},
        "bins": [[each.images, each.confidence, each.accuracy] for each in calibration.filled],
        "samples": [_seen(answers, n, classes, image_of) for n in answers.even(SHOWN_IMAGES)],
        "mistakes": [_seen(answers, n, classes, image_of) for n in mistakes_W[:SHOWN_IMAGES]],
    }  # fmt: skip
    return values


def write_result(folder: Path, values: dict[str, Any]) -> None:
    """Keep the :func:`result` of a branch in its ``folder``, which is made where it is missing."""
    make_folder(folder)
    write_text(folder / RESULT, json.dumps(_finite(values)))


def make_folder(folder: Path) -> None:
    """``folder``, with its parents; ``ValueError`` if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}; choose another folder by --out") from error


def read_results(run_dir: Path) -> dict[str, dict[str, Any]]:
    """What lies beside a run, by branch: B0 first, the network last. A file that cannot be read counts as missing."""
    found = {}
    for path in sorted((run_dir / FOLDER).glob(f"*/{RESULT}"), key=lambda path: path.parent.name.lower()):
        try:
            values = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(values, dict):
            found[path.parent.name] = values
    return found


def _seen(answers: Answers, n: int, classes: Sequence[str], image_of: Callable[[int], "Image"]) -> dict[str, Any]:
    """An answer with its image; without one if the image can no longer be read."""
    try:
        image = encoded(image_of(int(answers.index_N[n])))
    except UserError:
        image = ""
    true, said = classes[answers.target_N[n]], classes[answers.said_N[n]]
    return {"image": image, "true": true, "said": said, "confidence": float(answers.confidence_N[n])}


def encoded(image: "Image") -> str:
    """A small copy of an image as the address that a page shows it by."""
    image = image.convert("RGB")
    kind = "png" if max(image.size) <= SMALL else "jpeg"
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def _finite(value: Any) -> Any:
    """``value`` with null for NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
