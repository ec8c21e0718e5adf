"""``fastdhm data build|verify|info``: the files that the fast loader reads; ``data show``: a sheet of images."""

import dataclasses

from fastdhm.cli.parser import Parser, asked
from fastdhm.config.data import Data
from fastdhm.system.paths import default_data_dir, expanded

VERBS = {
    "build": "Write a data set as .beton files, and check every image. What is there and fits is kept.",
    "verify": "Check .beton files against their manifests.",
    "info": "Print what .beton files hold.",
}


def run(argv: list[str]) -> int:
    """``fastdhm data build|verify|info|show``; returns the exit status."""
    verb, argv = argv[0], argv[1:]
    if verb == "show":
        return _show(argv)
    parser = Parser(f"data {verb}", VERBS[verb])
    of_run = ("dataset", "data_dir", "store", "store_size", "store_quality", "grey_range")
    parser.add_class_arguments(Data, skip={field.name for field in dataclasses.fields(Data)} - set(of_run))
    if verb == "build":
        parser.flag("--workers", "Processes. (default: one for each processor)", int)
        parser.switch("--skip_bad", "Leave unreadable images out, and list them.")
        parser.switch("--force", "Build what is there again.")
    values = parser.parse(argv)
    from fastdhm.commands import data as commands
    from fastdhm.data.beton.settings import ImageSettings

    dataset, data_dir = values.pop("dataset"), expanded(values.pop("data_dir") or default_data_dir()).absolute()
    wishes = {name: values.pop(f"store_{name}") for name in ("size", "quality")}
    wishes |= {name: values.pop(name) for name in ("store", "grey_range")}
    settings = ImageSettings.for_dataset(dataset, **wishes)
    getattr(commands, verb)(dataset, data_dir, settings, **values)
    return 0


def _show(argv: list[str]) -> int:
    run_dir, argv = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    parser = Parser(
        "data show",
        "Draw training images as a run's network sees them: augmented, with their labels and what was drawn. "
        "Name a run, or give the flags of one that is not there yet, or both.",
        usage="fastdhm data show [RUN] [--FLAG VALUE ...]",
    )
    parser.flag("--out", "PNG to write.", default="augmented.png", metavar="FILE")
    parser.flag("--images", "Images on it.", int, 32)
    parser.flag("--epoch", "Epoch that they are of, from 1 on.", int, 1)
    parser.add_run_arguments()
    asks, flags = asked(argv)
    given = parser.given(flags)
    out, images, epoch = (given.pop(name, parser.get_default(name)) for name in ("out", "images", "epoch"))
    from fastdhm.cli.train import config_of

    config = config_of(given, run_dir)
    if asks:
        parser.show(asks, dataclasses.asdict(config))
    from fastdhm.commands.show import show

    show(config, expanded(out), images=images, epoch=epoch)
    return 0
