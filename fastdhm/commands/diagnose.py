"""``fastdhm diagnose``: compares what mimicking changed in runs: kernels (Figure 4) and gradients (Eq. 11).

Legend: F filters of a layer.
"""

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

from rich.table import Table
from safetensors.torch import save
from torch import Tensor

from fastdhm.commands.diagnose_plots import plot_gradients, plot_kernels
from fastdhm.commands.measured import Cosine, Layer
from fastdhm.config import TrainConfig
from fastdhm.data.loaders.crops import height_width
from fastdhm.engine.build import load_trained
from fastdhm.engine.plan import method_name
from fastdhm.engine.saved.record import read_log, to_host
from fastdhm.errors import UserError, unknown
from fastdhm.models.correlation import expected_by_chance, kernel_correlation, layer_pairs, summarize
from fastdhm.system.console import Console
from fastdhm.system.files import replacing, write_csv
from fastdhm.system.folders import check_writable
from fastdhm.system.paths import shown
from fastdhm.system.streams import visible

WHAT = ("all", "kernels", "gradients")
COSINE = "grad_cosine/"
LATE = 0.25  # the table of cosines has a mean over this last share of a run


def diagnose(paths: list[Path], *, branch: str = "B2", what: str = "all", out: Path) -> list[Path]:
    """Compare runs of one architecture, and write plots and their numbers into the folder ``out``.

    ``kernels``: the correlations of B0's 3x3 convolutions with those of ``branch``, as ``kernels.png``, ``kernels.csv``
    (a row per layer) and ``kernels.safetensors`` (the matrices). The weights come from the checkpoint that ``fastdhm
    eval`` uses. ``gradients``: the cosines that runs with ``grad_cosine`` logged, as ``gradients.png`` and
    ``gradients.csv``.

    Returns:
        The files written.

    Raises:
        ValueError: a path without a run or checkpoint, different architectures, or a run without the branch or without
            logged cosines.
    """
    if what not in WHAT:
        raise unknown("value of --what", what, WHAT)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out is {shown(out)}, which is a file: give a folder")
    check_writable(out, "--out")
    console = Console()
    loaded = {path: load_trained(path) for path in dict.fromkeys(paths)}
    configs = {path: trained.config for path, trained in loaded.items()}
    (first, arch), *others = ((path, config.arch) for path, config in configs.items())
    for path, other in others:
        if other != arch:
            raise UserError(
                f"{shown(path)} is a {other}, but {shown(first)} is a {arch}: give runs of one architecture"
            )
    names = _names(configs)
    written, kernels, cosines = [], None, None
    if what in ("all", "kernels"):
        models = {names[path]: trained.networks[0] for path, trained in loaded.items()}
        for path, trained in loaded.items():
            _refuse_without(trained.networks[0], branch, path, trained.config)
        kernels = _kernels(models, branch, configs[first])
    if what in ("all", "gradients"):
        cosines = [cosine for path in configs for cosine in _cosines(path, names[path])]
    out.mkdir(parents=True, exist_ok=True)  # write nothing before all inputs have been found
    if kernels is not None:
        written += _write_kernels(*kernels, branch, arch, out, console)
    if cosines is not None:
        written += _write_cosines(cosines, arch, out, console)
    if len(loaded) > 1:
        console.result("each run has one seed: a difference between two runs may be only luck")
    console.print(f"written: {', '.join(map(str, written))}")
    return written


def _names(configs: dict[Path, TrainConfig]) -> dict[Path, str]:
    """Names for the runs: their methods; if two share a method, with their folders."""
    methods = {path: method_name(config) for path, config in configs.items()}
    shared = [name for name in methods.values() if [*methods.values()].count(name) > 1]
    return {path: f"{name} ({visible(str(path))})" if name in shared else name for path, name in methods.items()}


def _refuse_without(model, branch: str, path: Path, config: TrainConfig) -> None:
    names = getattr(model, "branch_names", ())
    if branch in names[1:]:
        return
    has = f"has {', '.join(names)}" if names else "holds a stripped network"
    raise UserError(
        f"{shown(path)} ({method_name(config)}) {has}, so it has no side branch {branch} to compare with B0: "
        "give runs with that branch, another --branch, or --what gradients"
    )


def _kernels(models: dict, branch: str, config: TrainConfig) -> tuple[list[Layer], dict[tuple[str, str], Tensor]]:
    """Every pair of layers of every run, and the matrix [F, F] of each run and layer."""
    layers, matrices = [], {}
    for run, model in models.items():
        for main, side in layer_pairs(model, branch, (3, *height_width(config.image_size))):
            main_FCHW, side_FCHW = (model.get_parameter(f"{name}.weight").detach() for name in (main, side))
            correlation_FF = kernel_correlation(main_FCHW, side_FCHW)
            filters, channels = main_FCHW.shape[:2]
            scalars = {name: to_host(value) for name, value in summarize(correlation_FF).items()}
            layer, counterpart = main.removeprefix("trunk."), side.removeprefix("branches.")
            chance = expected_by_chance(channels)
            layers.append(Layer(run, layer, counterpart, filters, channels, **scalars, by_chance=chance))
            matrices[run, layer] = correlation_FF
    return layers, matrices


def _cosines(path: Path, run: str) -> list[Cosine]:
    """The cosines that a run logged, at each log point; if it has no log points, at the end of each epoch."""
    rows = read_log(path if path.is_dir() else path.parent)
    for kind in ("step", "epoch"):
        found = [
            Cosine(run, row["step"], row["epoch"], name.removeprefix(COSINE), value)
            for row in rows
            if row["kind"] == kind
            for name, value in row.items()
            if name.startswith(COSINE)
        ]
        if found:
            return found
    raise UserError(
        f"{shown(path)} has no cosines of gradients in its log.jsonl: train it with --grad-cosine STEPS (they cannot "
        "be computed later), or use --what kernels"
    )


def _write_kernels(
    layers: list[Layer], matrices: dict[tuple[str, str], Tensor], branch: str, arch: str, out: Path, console: Console
) -> list[Path]:
    paths = [out / f"kernels.{suffix}" for suffix in ("png", "csv", "safetensors")]
    plot_kernels(layers, matrices, paths[0], f"{arch}: filters of B0 and {branch}, correlated layer by layer")
    _write_csv(paths[1], layers, Layer)
    with replacing(paths[2]) as temporary:
        tensors = {f"{run}/{layer}": matrix.float().contiguous() for (run, layer), matrix in matrices.items()}
        temporary.write_bytes(save(tensors))
    runs = list(dict.fromkeys(layer.run for layer in layers))
    table = Table(title=f"mean |r| of the filters of B0 and {branch}", title_justify="left")
    for column in ("layer", *runs, "by chance"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for name in dict.fromkeys(layer.layer for layer in layers):
        rows = [layer for layer in layers if layer.layer == name]
        table.add_row(name, *(f"{row.mean_abs:.4f}" for row in rows), f"{rows[0].by_chance:.4f}")
    means = [_mean([layer.mean_abs for layer in layers if layer.run == run]) for run in runs]
    chance = _mean([layer.by_chance for layer in layers if layer.run == runs[0]])
    table.add_row("mean", *(f"{mean:.4f}" for mean in (*means, chance)), style="bold")
    console.result(table)
    return paths


def _write_cosines(cosines: list[Cosine], arch: str, out: Path, console: Console) -> list[Path]:
    paths = [out / f"gradients.{suffix}" for suffix in ("png", "csv")]
    plot_gradients(cosines, paths[0], f"{arch}: cosines between the branches' loss gradients at the forks")
    _write_csv(paths[1], cosines, Cosine)
    runs = list(dict.fromkeys(cosine.run for cosine in cosines))
    table = Table(title="mean cosine of the gradients, whole run / its last quarter", title_justify="left")
    for column in ("pair at fork", *runs):
        table.add_column(column, justify="left" if column not in runs else "right")
    for name in dict.fromkeys(cosine.name for cosine in cosines):
        cells = []
        for run in runs:
            mine = [cosine for cosine in cosines if (cosine.run, cosine.name) == (run, name)]
            late = (1 - LATE) * max((cosine.epoch for cosine in mine), default=0)
            means = [_mean([c.cosine for c in part]) for part in (mine, [c for c in mine if c.epoch >= late])]
            cells.append(" / ".join(f"{mean:.4f}" for mean in means) if mine else "")
        table.add_row(name, *cells)
    console.result(table)
    return paths


def _write_csv(path: Path, rows: Iterable, kind: type) -> None:
    write_csv(path, [field.name for field in fields(kind)], map(asdict, rows))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
