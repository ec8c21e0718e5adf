"""``fastdhm eval``: how good a trained network is."""

from fastdhm.cli.parser import Parser
from fastdhm.system.paths import expanded


def run(argv: list[str]) -> int:
    """``fastdhm eval``; returns the exit status."""
    parser = Parser(
        "eval",
        "Top-1 and top-5 validation error of each branch, and of the stripped network. After training on a "
        "re-identification set: mAP and CMC of the stripped network's features, single query, with ranking.png and "
        "cmc.png beside RUN.",
    )
    parser.add_argument("path", type=str, help="a run directory, a checkpoint (.pt) or a network (.safetensors)")
    parser.add_argument(
        "--dataset", type=str | None, default=None,
        help="where its images lie now (folder:PATH), or other images of the same classes (default: the run's)",
    )  # fmt: skip
    parser.add_argument("--data_dir", type=str | None, default=None, help="data folder (default: the run's)")
    parser.add_argument("--loader", type=str | None, default=None, help="resident, ffcv or torch (default: the run's)")
    parser.add_argument("--workers", type=int | None, default=None, help="loader threads or processes")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--reid", action="store_true", help="refuse a run on anything but a re-identification set")
    parser.add_argument("--metric", type=str, default="euclidean", help="distance of features: euclidean or cosine")
    parser.add_argument("--flip_average", action="store_true", help="average features with the mirror image's")
    parser.add_argument("--rerank", action="store_true", help="re-rank by k-reciprocal neighbours")
    parser.add_argument("--per_query", metavar="FILE", type=str | None, default=None, help="CSV of every query's AP")
    values = parser.parse(argv)
    given = {name: values.pop(name) for name in ("metric", "flip_average", "rerank")}
    ranking = {name: value for name, value in given.items() if value not in ("euclidean", False)}
    per_query = values.pop("per_query")
    from fastdhm.commands.evaluate import evaluate_path
    from fastdhm.engine.device import use_processors

    use_processors()
    path, per_query = expanded(values.pop("path")), per_query and expanded(per_query)
    evaluate_path(path, as_json=values.pop("json"), per_query=per_query, **ranking, **values)
    return 0
