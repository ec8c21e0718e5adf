"""``fastdhm bench NAME``: what is fast here against its peers."""

import importlib
from dataclasses import dataclass
from typing import Any

from fastdhm.cli.parser import Parser

CHECKED = "Each is checked first."
BENCHES = {
    "loss": f"Time the mimicking loss, forward and backward, against its peers. {CHECKED}",
    "linear": "Time heads and mimicking loss as one op, forward and backward, against ways that hold all logits, and "
    f"measure memory. {CHECKED}",
    "mask": f"Time the branch mask against its peers. {CHECKED}",
    "conv": f"Time convolutions, forward and backward, on the CPU, against torch's. {CHECKED}",
    "norm": f"Time batch norm with residual and relu, forward and backward, on the CPU, against its peers. {CHECKED}",
    "reid": f"Time the ranking of a gallery of Market-1501's size, on the CPU, against its peers. {CHECKED}",
    "epoch": "Time whole epochs, data included, of the engine and of the eager reference, in turns; and how long each "
    "waits for data.",
    "loader": "Time every loader against a torchvision DataLoader, in images a second. Samples are checked first.",
    "startup": "Time a run from the command to its first step and to full speed, with empty caches and with full ones, "
    "and the eager reference. Each run is a process of its own.",
    "scale": "Time a run of several processes against one of one process, and the ways to share the gradients of "
    "sampled branches. The weights are checked first.",
    "accuracy": "Time training to a test error, of the engine and of the eager reference, by the same recipe. "
    "Evaluation does not count.",
    "step": "Time a training step against the eager reference: float32, NCHW, a loss of loops, a wait for each logged "
    "number. Both are checked against float64 first. Memory, energy and where the time goes are measured too.",
}


@dataclass(frozen=True)
class Flag:
    """A flag of a benchmark. One that ``repeats`` gives the benchmark's list of that name: --arch its archs."""

    help: str
    kind: Any = str
    default: Any = None
    quick: Any = None
    """Its default in a smoke run, where that is another."""
    repeats: bool = False


DATASET, ARCH = "Images, as in `fastdhm train`.", "Network, as in `fastdhm train`."
PRECISION = "Precision of the engine: float32, bfloat16, float16 or auto."
METHOD = {"--method": Flag("Method: baseline, dsl or dhm.", default="dhm")}
NETWORK = METHOD | {"--precision": Flag(PRECISION, default="auto")}
DATA = {
    "--arch": Flag(f"{ARCH} (default: the data set's usual one)"),
    "--data_dir": Flag("Folder of the data sets. (default: ~/.cache/fastdhm)"),
    **NETWORK,
}
# What a benchmark's flags are beside the shared ones.
FLAGS: dict[str, dict[str, Flag]] = {
    "loss": {
        "--shape": Flag("Branches x batch x classes, as 3x256x1000; may be repeated.", repeats=True),
        "--dtype": Flag("Type: float32, bfloat16, float16 or float64.", default="float32"),
        "--compiled": Flag("torch.compile the loops: on, off or auto (two shapes).", default="auto"),
        "--sweep": Flag("Time it over branches and over classes too, and plot.", bool, False),
    },
    "linear": {
        "--shape": Flag("Branches x batch x classes, as 3x256x100000; may be repeated.", repeats=True),
        "--features": Flag("Features that a head reads.", int, 512, quick=16),
        "--dtype": Flag("Type of the products: float32 or bfloat16 (autocast).", default="float32"),
        "--compiled": Flag("torch.compile the eager twin: on, off or auto (two shapes).", default="auto"),
        "--chunk_mib": Flag("MiB of a chunk. (default: the op's own)", float),
        "--step": Flag("Network whose whole training step to time instead, by the op and from all logits."),
        "--classes": Flag("Classes of that network.", int, 200_000, quick=100),
        "--batch_size": Flag("Images in that step. (default: 128 small or 32 large ones)", int, quick=8),
    },
    "conv": {"--dtype": Flag("Type: bfloat16 or float32.", default="bfloat16")},
    "norm": {
        "--dtype": Flag("Type: bfloat16 or float32.", default="bfloat16"),
        "--compiled": Flag("Time torch.compile too: on, off or auto.", default="auto"),
    },
    "step": {
        "--arch": Flag(
            "Network; may be repeated. (default: resnet32)", default=["resnet32"], quick=["resnet8"], repeats=True
        ),
        "--image_size": Flag("Side of the images, in pixels. (default: the paper's)", int, quick=16),
        "--batch_size": Flag("Images in a step. (default: 128 small or 32 large ones)", int, quick=8),
        **NETWORK,
        "--compile": Flag("torch.compile the engine's step: on, off or auto.", default="off"),
        "--smoothing": Flag("Of the reference's mimicking; 1e-8 in the released code.", float, 0.0),
        "--peers": Flag("Peers to time, such as reference,baseline. (default: all)"),
        "--sweep": Flag("Time batches of 1 to 512 and all numbers of threads instead, and plot.", bool, False),
    },
    "epoch": {
        "--dataset": Flag(DATASET, default="fashion-mnist", quick="synthetic:64"),
        **DATA,
        "--batch_size": Flag("Images in a step. (default: the recipe's)", int, quick=16),
        "--workers": Flag("Workers of both loaders. (default: as in training)", int),
        "--max_steps": Flag("Steps of an epoch. (default: all)", int),
        "--agreement": Flag("Compare the losses of this many equal steps too.", int),
    },
    "startup": {
        "--dataset": Flag(DATASET, default="synthetic", quick="synthetic:512"),
        "--arch": Flag(ARCH, default="resnet32", quick="resnet8"),
        **METHOD,
        "--steps": Flag("Steps of each run, half of them at full speed.", int, 60, quick=8),
        "--compile": Flag("torch.compile the step: on, off or auto.", default="auto"),
    },
    "accuracy": {
        "--dataset": Flag(DATASET, default="fashion-mnist", quick="synthetic:256"),
        **DATA,
        "--target": Flag("Error of B0 on the test set to reach, in percent.", float, 12.0, quick=90.0),
        "--epochs": Flag("Epochs of both. (default: the recipe's)", int, quick=2),
        "--eval_steps": Flag("Steps between evaluations.", int, 50, quick=4),
        "--seeds": Flag("Trainings of each.", int, 3, quick=1),
        "--preset": Flag("Train with the data set's fast preset too: true or false.", bool, True),
    },
    "scale": {
        "--arch": Flag(ARCH, default="resnet20", quick="resnet8"),
        "--image_size": Flag("Side of the images, in pixels. (default: the paper's)", int, quick=16),
        "--batch_size": Flag("Images in a step of all processes. (default: 128 small or 32 large ones)", int, quick=16),
        "--precision": Flag(PRECISION, default="auto"),
        "--processes": Flag("Processes of the run.", int, 2),
        "--images_per_s": Flag("On paper: images a second of one GPU that trains ResNet-50.", float, 1217.0),
        "--bandwidth": Flag("On paper: GB/s between two GPUs.", float, 12.5),
        "--latency": Flag("On paper: microseconds of a message between two GPUs.", float, 10.0),
        "--gpu_batch": Flag("On paper: images of a step that a GPU has.", int, 256),
    },
    "loader": {
        "--images": Flag("Photographs in an epoch.", int, 600, quick=48),
        "--workers": Flag("Threads or processes of each loader.", int, 2),
        "--batch_size": Flag("Images in a batch.", int, 64),
    },
}
# samples of each peer; 50 elsewhere
ROUNDS = {"conv": 20, "linear": 5, "reid": 5, "step": 15, "epoch": 3, "loader": 5, "scale": 10, "startup": 3}
ON_THE_CPU = ("conv", "loader", "norm", "reid")
SHARED = ("device", "threads", "rounds", "quick", "out", "json")  # the frame's


def run(argv: list[str]) -> int:
    """``fastdhm bench NAME ARGV``; returns the exit status, 1 if a peer gave a wrong result."""
    name, argv = argv[0], argv[1:]
    flags = dict(FLAGS.get(name, {}))
    if name not in ON_THE_CPU:
        flags["--device"] = Flag("Device: cpu, cuda, cuda:1 or auto.", default="auto")
    flags["--threads"] = Flag("Threads of torch. (default: torch's own)", int)
    if name != "accuracy":  # its samples are its seeds
        flags["--rounds"] = Flag("Samples of each peer; 1 in a smoke run.", int, ROUNDS.get(name, 50), quick=1)
    values = _parse(Parser(f"bench {name}", BENCHES[name]), flags, argv)
    from fastdhm.engine.device import use_processors

    use_processors()
    module, frame = (importlib.import_module(f"fastdhm.benchmarks.{part}") for part in (name, "harness.frame"))
    shared = {key: values.pop(key) for key in SHARED if key in values}
    return module.bench(frame.Frame(name, **shared), **values)


def _parse(parser: Parser, flags: dict[str, Flag], argv: list[str]) -> dict[str, Any]:
    """The values of ``flags``, and of those that every benchmark has."""
    lists = {}
    for name, flag in flags.items():
        default = flag.quick if "--quick" in argv and flag.quick is not None else flag.default
        if flag.repeats:
            lists[name.strip("-")] = default or []
            parser.add_argument(name, action="append", metavar="NAME", help=flag.help)
        elif flag.default is False:
            parser.switch(name, flag.help)
        else:
            parser.flag(name, flag.help, flag.kind, default)
    parser.switch("--quick", "Only try it: small sizes, one round, no compiling.")
    parser.flag("--out", "Folder of the JSON, CSV and plots.", default="bench", metavar="FOLDER")
    parser.switch("--json", "Print one JSON object.")
    values = parser.parse(argv)
    for key, default in lists.items():
        values[f"{key}s"] = values.pop(key) or default
    return values
