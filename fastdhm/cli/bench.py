"""``fastdhm bench loss|mask|norm|reid``: what is fast here against its peers."""

import importlib
from pathlib import Path

from fastdhm.cli.parser import Parser

BENCHES = {
    "loss": "Time the mimicking loss, forward and backward, against its peers; each is checked first.",
    "mask": "Time the branch mask against its peers; each is checked first.",
    "norm": "Time batch norm with residual and relu, forward and backward, on the CPU, against its peers.",
    "reid": "Time the ranking of a gallery of Market-1501's size, on the CPU, against its peers; each is checked.",
}


def run(argv: list[str]) -> int:
    """``fastdhm bench loss|mask|norm|reid``; returns the exit status, 1 if a peer gave a wrong result."""
    name, argv = argv[0], argv[1:]
    parser = Parser(f"bench {name}", BENCHES[name])
    if name == "loss":
        parser.add_argument(
            "--shape", action="append", help="branches x batch x classes, as 3x256x1000; repeatable (default: a grid)"
        )
        parser.add_argument("--dtype", type=str, default="float32", help="float32, bfloat16, float16 or float64")
        parser.add_argument(
            "--compiled", type=str, default="auto", help="time torch.compile of the loops: on, off, auto (two shapes)"
        )
        parser.add_argument("--sweep", action="store_true", help="also over branches and classes, with plots")
    if name == "norm":
        parser.add_argument("--dtype", type=str, default="bfloat16", help="bfloat16 or float32")
        parser.add_argument("--compiled", type=str, default="auto", help="time torch.compile too: on, off, auto")
    if name in ("loss", "mask"):
        parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=int | None, default=None, help="threads of torch (default: torch's own)")
    parser.add_argument("--rounds", type=int, default=5 if name == "reid" else 50, help="samples of each peer")
    parser.add_argument("--quick", action="store_true", help="a smoke run: small, few rounds, no compiling")
    parser.add_argument("--out", type=str, default="bench", help="folder for JSON, CSV and plots")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    values = parser.parse(argv)
    if name == "loss":
        values["shapes"] = values.pop("shape") or ()
    module = importlib.import_module(f"fastdhm.benchmarks.{name}")
    return module.bench(out=Path(values.pop("out")).expanduser(), as_json=values.pop("json"), **values)
