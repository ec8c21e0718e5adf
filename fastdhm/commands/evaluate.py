"""``fastdhm eval``: the validation errors of a run, checkpoint or plain network, or how well it tells people apart."""

import dataclasses
import json
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import nn

from fastdhm import models
from fastdhm.commands.early_exit import EarlyExit
from fastdhm.commands.per_class import make_writable, per_class_folder, print_per_class, write_per_class
from fastdhm.config import TrainConfig
from fastdhm.data import LoadedSplit
from fastdhm.data.augment.transforms import DeviceTransform
from fastdhm.data.loaders.crops import height_width
from fastdhm.data.loaders.loader import Loader
from fastdhm.data.sources.identity import Identity, changes, identity
from fastdhm.data.sources.source import REID_DATASETS, is_reid
from fastdhm.engine import distributed
from fastdhm.engine.build import Trained, check_network, load_trained, open_to_judge
from fastdhm.engine.device import pick_device, pick_own_precision, placed
from fastdhm.engine.evaluate import Errors, Kept, evaluate
from fastdhm.engine.reid import (
    JUDGED,
    HowToRank,
    open_people,
    print_result,
    rank_people,
    write_per_query,
    write_pictures,
)
from fastdhm.engine.saved import checkpoint
from fastdhm.engine.saved.judged import FLATTERS, is_chosen, judged_images, judged_on, what_is_chosen
from fastdhm.errors import UserError
from fastdhm.per_class.measures import Answers, Calibration
from fastdhm.system.console import Console
from fastdhm.system.folders import check_writable

COLUMNS = {"top1_error": "top-1 %", "top5_error": "top-5 %", "calibration_error": "calibration error %"}


@dataclass(frozen=True)
class Judging:
    """What is judged, on which images, and who is told."""

    trained: Trained
    path: Path
    config: TrainConfig
    """The run's, with what was given instead."""
    console: Console
    as_json: bool

    def say_what_changed(self, now: Identity) -> bool:
        """Whether these are other images than in the network's run: the user is told."""
        changed = changes(self.trained.data, now)
        if changed:
            told = f"{self.config.dataset} is not what {self.path} was validated on"
            self.console.print(f"{told}: {'; '.join(changed)}")
        return bool(changed)


def evaluate_path(
    path: Path,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    loader: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    as_json: bool = False,
    reid: bool = False,
    per_query: Path | None = None,
    per_class: bool = False,
    out: Path | None = None,
    branch: str | None = None,
    early_exit: float | None = None,
    **ranking: Any,
) -> dict[str, Any]:
    """Evaluate what is at ``path`` on its run's data, print a table (or JSON) and return the numbers.

    In a run directory, the stripped network and the checkpoint that it comes from are evaluated. The result has the
    validation errors of every branch of the checkpoint, B0 first; ``network`` is the plain network. For a
    re-identification set, the stripped network ranks people instead, and pictures of that are drawn next to ``path``.

    Args:
        dataset: judge on this one instead: the new place of the images, or other images of the same classes.
        reid: refuse a run on a data set that is not a re-identification set.
        per_query: write the average precision of each query to this CSV file.
        per_class: write tables and pictures of each class into ``out``, a folder for each branch; the result gains the
            ``calibration_error`` of each.
        out: ``None``: the folder ``per-class`` next to ``path``.
        branch: judge this one alone, or the "ensemble"; with ``early_exit``, the branch that images go on to.
        early_exit: also judge a cascade in which an image leaves at the cheapest branch if that gives its likeliest
            class this probability. The result gains ``early_exit``: of each threshold that was tried, the share of
            images that ``left``, the errors and the mean of the ``multiply_adds``.
        ranking: fields of :class:`HowToRank` that are not at their default.

    Raises:
        ValueError: ``path`` holds nothing of fastdhm, the data is missing, or an option does not fit the data set.
    """
    with distributed.joined(device):
        pick_device(device)  # raise now, if there is none
        if out is not None and not per_class:
            raise UserError(f"--out {out} is the folder of --per-class: give both, or neither")
        given = {"dataset": dataset, "data_dir": data_dir, "loader": loader, "workers": workers, "device": device}
        trained = load_trained(path, branch if early_exit is None else None)
        check_network(trained)
        config, console = _config(trained, path, given), Console(stderr=as_json, quiet=distributed.rank() > 0)
        judging = Judging(trained, path, config, console, as_json)
        if not is_reid(config.dataset):
            wishes = [*(["reid"] if reid else []), *(["per_query"] if per_query else []), *ranking]
            if wishes:
                raise UserError(
                    f"--{wishes[0].replace('_', '-')} is for re-identification, and {path} was trained on "
                    f"{config.dataset}: needs a run on {', '.join(REID_DATASETS)}"
                )
            cascade = None if early_exit is None else EarlyExit.of(trained, early_exit, branch, path)
            return _judge(judging, per_class_folder(path, out) if per_class else None, cascade)
        if per_class:
            raise UserError(
                f"--per-class is for classes, and {path} was trained on {config.dataset}, whose people are ranked: "
                "--per-query FILE gives the precision of each query"
            )
        if branch is not None or early_exit is not None:
            raise UserError(f"--branch and --early-exit are for classes, and {path} tells people apart: leave them out")
        return _rank_people(judging, HowToRank(**ranking), per_query)


def _config(trained: Trained, path: Path, given: dict[str, Any]) -> TrainConfig:
    """The run's settings, with what was ``given`` instead."""
    config, dataset = trained.config, given["dataset"]
    if dataset is not None and is_reid(dataset) != is_reid(config.dataset):
        raise UserError(f"--dataset {dataset}: {path} was trained on {config.dataset}, which is judged in another way")
    return dataclasses.replace(config, **{name: value for name, value in given.items() if value is not None})


def _judge(judging: Judging, folder: Path | None, cascade: EarlyExit | None) -> dict[str, Any]:
    """The errors of all networks and of a cascade; into ``folder``, what the first network does with each class."""
    trained, path, config, console = judging.trained, judging.path, judging.config, judging.console
    if folder is not None and distributed.rank() == 0:
        make_writable(folder)
    with distributed.in_turn():
        (val,) = open_to_judge(config, console, "val")
    with closing(val):
        distributed.check_alike("images of ", val.identity)
        unnamed = trained.classes == checkpoint.numbered_classes(len(val.classes))
        if tuple(val.classes) != trained.classes and not unnamed:
            raise UserError(f"{path} was trained on other classes than {config.dataset} has")
        changed = judging.say_what_changed({"val": val.identity})
        results: dict[str, Any] = {}
        exits: dict[str, Any] = {}
        answers: dict[str, Answers] = {}
        for network in trained.networks:
            kept = Kept() if folder is not None and not results else None
            found = _errors(network, config, val.loader, kept)
            results |= found
            if kept is not None:  # the first process has them
                answers = dict(zip(found, kept.answers(val.loader, len(val.classes)), strict=False))
        if cascade is not None:
            exits = {"early_exit": cascade.judge(partial(_judged, config=config, loader=val.loader))}
        if distributed.rank():
            return results | exits
        for name, of_images in answers.items():
            results[name]["calibration_error"] = 100 * Calibration.of(of_images).expected_error
        told = f"{judged_on(config)} error of {path}, on {val.loader.num_samples:,} images: {judged_images(config)}"
        about = [told, *[f"{what_is_chosen(path)} is {FLATTERS}"] * (is_chosen(path, config) and not changed)]
        _print(results | exits if judging.as_json else results, about, console, judging.as_json)
        if cascade is not None:
            _keep_exits(judging, cascade, exits["early_exit"], results)
        if folder is not None:
            _keep_classes(judging, folder, answers, val)
    return results | exits


def _keep_exits(judging: Judging, cascade: EarlyExit, found: dict[str, Any], alone: dict[str, Any]) -> None:
    """Print what leaving early gives, and keep it in a run's folder for the page."""
    if not judging.as_json:
        cascade.show(found, judging.console)
    if judging.path.is_dir():
        try:
            about = {"step": judging.trained.step, "images": judged_images(judging.config)}
            cascade.keep(found, alone, judging.path, about)
        except (UserError, OSError) as error:  # a read-only folder, say
            judging.console.print(f"the page of the run will not have this: {error}")


def _keep_classes(judging: Judging, folder: Path, answers: dict[str, Answers], val: LoadedSplit) -> None:
    """Write and print what each branch, by its name, answers to the images of each class."""
    main, path, config, console = next(iter(answers)), judging.path, judging.config, judging.console
    if not judging.as_json:
        print_per_class(console, main, answers[main], val.classes)
    about = f"{path}, on {judged_images(config)}"
    for name, of_images in answers.items():
        title = f"{name} of {config.arch}, {config.method}, {config.dataset}"
        write_per_class(folder / name, of_images, val.source, about, title, judging.trained.step)
    console.print(f"tables and pictures of each class: {', '.join(str(folder / name) for name in answers)}")


def _rank_people(judging: Judging, how: HowToRank, per_query: Path | None) -> dict[str, Any]:
    path, config, console = judging.path, judging.config, judging.console
    if per_query and distributed.rank() == 0:
        _check_per_query(per_query)
    with ExitStack() as opened:
        with distributed.in_turn():
            splits = opened.enter_context(open_people(config, console))
        distributed.check_alike("images of ", dict(zip(JUDGED, (split.identity for split in splits), strict=True)))
        ranked = rank_people(judging.trained.plain, splits, config, how, console)
    if distributed.rank():
        return ranked.record()
    now = {name: identity(seen.images) for name, seen in (("query", ranked.query), ("gallery", ranked.gallery))}
    judging.say_what_changed(now)
    if judging.as_json:
        Console().result(json.dumps(ranked.record()))
    else:
        print_result(ranked, f"re-identification on {config.dataset} by {path}", console.result)
    if per_query:
        write_per_query(ranked, per_query)
        console.print(f"each query's average precision: {per_query}")
    folder = path if path.is_dir() else path.parent
    try:
        pictures = write_pictures(ranked, folder, f"{config.dataset}, {config.arch}, {config.method}")
        console.print(f"pictures: {', '.join(map(str, pictures))}")
    except (ValueError, OSError) as error:  # a read-only folder, say: the numbers matter more
        console.print(f"pictures are left out: {error}")
    return ranked.record()


def _check_per_query(path: Path) -> None:
    """Fail now, not after all the work."""
    if not path.parent.is_dir():
        raise UserError(f"--per-query {path}: {path.parent} is no folder")
    if path.is_dir():
        raise UserError(f"--per-query {path} is a folder: name the CSV file to write")
    check_writable(path.parent, "the folder of --per-query")


def _judged(network: nn.Module, config: TrainConfig, loader: Loader, kept: Kept | None = None) -> Errors:
    device = pick_device(config.device)
    network = placed(network, device)
    transform = DeviceTransform(config.mean, config.std).to(device)
    precision, side = pick_own_precision(config.precision, device), min(height_width(config.image_size))
    return evaluate(network, loader, transform, device, precision, side, kept=kept)


def _errors(
    network: nn.Module, config: TrainConfig, loader: Loader, kept: Kept | None
) -> dict[str, dict[str, float | None]]:
    errors = _judged(network, config, loader, kept)
    names = network.branch_names if isinstance(network, models.BranchedModel) else ("network",)
    columns = zip(names, errors.top1_M, errors.top5_M, strict=True)
    return {name: {"top1_error": top1, "top5_error": top5} for name, top1, top5 in columns}


def _print(results: dict[str, dict[str, float | None]], about: list[str], console: Console, as_json: bool) -> None:
    title, *notes = about
    if as_json:
        console.print(". ".join(about))
        Console().result(json.dumps(results))
        return
    console.result(title, style="italic")
    table = Table()
    columns = {name: title for name, title in COLUMNS.items() if any(name in row for row in results.values())}
    for title in ("branch", *columns.values()):
        table.add_column(title, justify="left" if title == "branch" else "right")
    for branch, row in results.items():
        cells = ("-" if (value := row.get(name)) is None else f"{value:.4f}" for name in columns)
        table.add_row(branch, *cells, style="bold" if branch == "B0" else "")
    console.result(table)
    for note in notes:
        console.result(note)
