"""``fastdhm eval``: how good a trained network is."""

from fastdhm.cli.parser import Parser
from fastdhm.cli.processes import add_processes, in_processes, told_once
from fastdhm.system.paths import expanded


def run(argv: list[str]) -> int:
    """``fastdhm eval``; returns the exit status."""
    parser = Parser(
        "eval",
        "Print the top-1 and top-5 validation error of each branch, and of the stripped network. For a run on people: "
        "mAP and CMC of the stripped network's features, single query, with ranking.png and cmc.png beside the run.",
    )
    parser.add_argument("path", type=str, help="Run directory, checkpoint (.pt) or network (.safetensors).")
    parser.flag("--branch", "Judge one alone: a branch such as B1, or ensemble, the mean of all their probabilities.")
    parser.flag("--early_exit", "Judge a cascade: images leave at the cheapest branch from this probability on.", float)
    parser.flag("--dataset", "Images of the same classes, such as folder:PATH. (default: the run's)")
    parser.flag("--data_dir", "Folder of the data sets. (default: the run's)")
    parser.flag("--loader", "Who feeds the images: resident, ffcv or torch. (default: the run's)")
    parser.flag("--workers", "Threads or processes that load images. (default: the run's)", int)
    parser.flag("--device", "Device: cpu, cuda, cuda:1 or auto.", default="auto")
    add_processes(parser)
    parser.switch("--json", "Print one JSON object instead of a table.")
    parser.switch("--per_class", "Write tables and pictures of each class: recall, confusion, calibration, mistakes.")
    parser.flag("--out", "Folder of --per-class. (default: per-class in the run)", metavar="FOLDER")
    parser.switch("--reid", "Refuse a run that was not on people.")
    parser.flag("--metric", "Distance of features: euclidean or cosine.", default="euclidean")
    parser.switch("--flip_average", "Average features with those of the mirror image.")
    parser.switch("--rerank", "Rank again by k-reciprocal neighbours.")
    parser.flag("--per_query", "Write every query's AP to this CSV file.", metavar="FILE")
    with told_once():
        values = parser.parse(argv)
        status = in_processes(["eval", *argv], values.pop("processes"), values["device"])
    if status is not None:
        return status
    given = {name: values.pop(name) for name in ("metric", "flip_average", "rerank")}
    ranking = {name: value for name, value in given.items() if value not in ("euclidean", False)}
    per_query, out = values.pop("per_query"), values.pop("out")
    from fastdhm.commands.evaluate import evaluate_path

    path, per_query, out = expanded(values.pop("path")), per_query and expanded(per_query), out and expanded(out)
    evaluate_path(path, as_json=values.pop("json"), per_query=per_query, out=out, **ranking, **values)
    return 0
