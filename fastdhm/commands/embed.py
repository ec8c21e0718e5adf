"""``fastdhm embed``: what a run's network makes of each image in a folder, for a search index."""

import dataclasses
import tempfile
from contextlib import closing
from pathlib import Path

from torch import Tensor

from fastdhm.data import open_pictures
from fastdhm.engine import distributed
from fastdhm.engine.build import check_network, data_options, load_trained
from fastdhm.engine.device import pick_device, pick_workers
from fastdhm.engine.reid import features
from fastdhm.errors import UserError
from fastdhm.reid.features import check_suffix, names_beside, save_features
from fastdhm.system.console import Console
from fastdhm.system.folders import check_writable


def embed(
    path: Path,
    folder: Path,
    out: Path,
    *,
    normalize: bool = False,
    flip_average: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    device: str = "auto",
) -> None:
    """Write the features of every image in ``folder`` and below, with their names, to ``out``.

    Of several processes each computes its batches, and the first writes what one alone would have written.

    Features are the input of the classifier of the plain network at ``path`` (as in ``fastdhm eval``). The images are
    prepared as in its run's validation.

    Args:
        out: a ``.safetensors`` or ``.npy`` file, see ``reid.features.save_features``. If it cannot be written in the
            end, the embeddings are kept in the folder for temporary files, and the error says so.
        normalize: scale each embedding to length 1.
        flip_average: average with the features of the mirror image.
        batch_size: images at a time; ``None``: as in the run's validation.
        workers: loader processes.
        skip_bad: leave unreadable images out instead of stopping at the first.

    Raises:
        ValueError: ``path`` holds nothing of fastdhm, ``folder`` has no image, ``out`` has another suffix, or features
            are not finite.
    """
    with distributed.joined(device):
        pick_device(device)  # raise now, if there is none
        first, console = distributed.rank() == 0, Console(quiet=distributed.rank() > 0)
        if first:
            _check_out(out)
        trained = load_trained(path)
        check_network(trained)
        config = dataclasses.replace(trained.config, device=device)
        options = dataclasses.replace(
            data_options(config),
            eval_batch_size=config.eval_batch_size if batch_size is None else batch_size,
            workers=pick_workers(workers, pick_device(device)),
            skip_bad=skip_bad,
        )
        with closing(open_pictures(folder, options, say=console.print)) as pictures:
            names = [pictures.source.label(i) for i in range(len(pictures.source))]
            distributed.check_alike("", {"images": names})
            feature_ND = features(
                trained.plain, pictures, config, "images", console, flip_average=flip_average, normalise=normalize,
                to_all=False,
            )  # fmt: skip
        if first:
            _save(out, feature_ND, names, console)


def _save(out: Path, feature_ND: Tensor, names: list[str], console: Console) -> None:
    beside = names_beside(out, names)
    try:
        save_features(out, feature_ND, names)
    except (UserError, OSError) as error:
        raise UserError(f"{error}\n{_kept_elsewhere(out, feature_ND, names)}") from error
    count, width = feature_ND.shape
    console.print(f"{count:,} embeddings of {width} numbers: {out}" + (f", names: {beside}" if beside else ""))


def _check_out(out: Path) -> None:
    """Fail now, not after all the work."""
    check_suffix(out)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name the file to write")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: {out.parent} is no folder")
    check_writable(out.parent, "the folder of --out")


def _kept_elsewhere(out: Path, feature_ND: Tensor, names: list[str]) -> str:
    """Keep embeddings that cannot be written to ``out``, and say where: they may be the work of hours."""
    try:
        elsewhere = Path(tempfile.mkdtemp(prefix="fastdhm-embed-"), out.name)
        save_features(elsewhere, feature_ND, names)
    except (UserError, OSError) as error:
        return f"nor could they be kept elsewhere: {error}"
    return f"the embeddings are kept in {elsewhere}"
