"""The plots of ``fastdhm diagnose``.

Legend: F filters of a layer.
"""

from pathlib import Path

from torch import Tensor

from fastdhm.commands.measured import Cosine, Layer
from fastdhm.system.plotting import save_figure

SHOWN = 5  # layers whose matrices are drawn


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _spread(names: list[str]) -> list[str]:
    """At most :data:`SHOWN` of ``names``, evenly spaced from the first to the last."""
    count = min(SHOWN, len(names))
    return [names[round(i * (len(names) - 1) / max(1, count - 1))] for i in range(count)]


def plot_kernels(layers: list[Layer], matrices: dict[tuple[str, str], Tensor], path: Path, title: str) -> None:
    """Draw a PNG: for each run a row of correlation matrices of some layers; below, the mean ``|r|`` of all layers."""
    plt = _pyplot()
    runs, names = (list(dict.fromkeys(getattr(layer, key) for layer in layers)) for key in ("run", "layer"))
    shown, found = _spread(names), {(layer.run, layer.layer): layer for layer in layers}
    size = (2.4 * max(len(shown), 3) + 1.2, 2.5 * len(runs) + 3.2)
    figure = plt.figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(len(runs) + 1, len(shown), height_ratios=[*[1] * len(runs), 1.1])
    limit = max(float(matrices[run, name].abs().quantile(0.995)) for run in runs for name in shown)
    axes = []
    for row, run in enumerate(runs):
        for column, name in enumerate(shown):
            axis = figure.add_subplot(grid[row, column])
            axes.append(axis)
            picture = axis.imshow(matrices[run, name].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.set(xticks=[], yticks=[])
            above = f"{name}\n" if row == 0 else ""
            axis.set_title(f"{above}mean |r| {found[run, name].mean_abs:.3f}", fontsize=8)
            if column == 0:
                axis.set_ylabel(f"{run}\nfilters of B0", fontsize=8)
            if row == len(runs) - 1:
                axis.set_xlabel(f"filters of {found[run, name].counterpart}", fontsize=7)
    figure.colorbar(picture, ax=axes, shrink=0.7, label="correlation r")
    axis = figure.add_subplot(grid[len(runs), :])
    for run in runs:
        axis.plot(names, [found[run, name].mean_abs for name in names], "o-", ms=4, label=run)
    axis.plot(names, [found[runs[0], name].by_chance for name in names], ":", color="0.4", label="independent filters")
    axis.set(ylabel="mean |r|", ylim=(0, None))
    axis.tick_params(axis="x", labelrotation=30 if len(names) < 16 else 90, labelsize=7)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=120)
    plt.close(figure)


def plot_gradients(cosines: list[Cosine], path: Path, title: str) -> None:
    """Draw a PNG of the cosines over the epochs: a panel for each pair and fork, a line for each run."""
    plt = _pyplot()
    names, runs = (list(dict.fromkeys(getattr(cosine, key) for cosine in cosines)) for key in ("name", "run"))
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns + 0.4, 2.9 * rows + 0.5), layout="constrained", squeeze=False,
        sharex=True, sharey=True,
    )  # fmt: skip
    for axis, name in zip(axes.flat, names, strict=False):
        for number, run in enumerate(runs):
            mine = [cosine for cosine in cosines if (cosine.run, cosine.name) == (run, name)]
            axis.plot([c.epoch for c in mine], [c.cosine for c in mine], color=f"C{number}", lw=1.2, label=run)
        pair, fork = name.split("@", 1)
        axis.set_title(f"{' and '.join(pair.split('-'))} at {fork}", fontsize=9)
        axis.axhline(0, color="0.6", lw=0.8)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("cosine")
    for column in range(columns):
        last = max(row for row in range(rows) if row * columns + column < len(names))
        axes[last, column].set_xlabel("epoch")
        axes[last, column].tick_params(labelbottom=True)
    axes[0, 0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=120)
    plt.close(figure)
