"""``fastdhm bench NAME``: what is fast here against its peers."""

import importlib
from typing import Any

from fastdhm.cli.parser import Parser

BENCHES = {
    "loss": "Time the mimicking loss, forward and backward, against its peers; each is checked first.",
    "mask": "Time the branch mask against its peers; each is checked first.",
    "conv": "Time convolutions, forward and backward, on the CPU, against torch's; each is checked first.",
    "norm": "Time batch norm with residual and relu, forward and backward, on the CPU, against its peers.",
    "reid": "Time the ranking of a gallery of Market-1501's size, on the CPU, against its peers; each is checked.",
    "epoch": "Whole epochs, data included, of the engine and of the eager reference, in turns; and how long each waits "
    "for data. --agreement N also holds the losses of N steps from the same weights and batches together.",
    "loader": "Images a second of every loader against a torchvision DataLoader; their samples are checked first.",
    "startup": "Time from the command to the first optimizer step and to full speed, with empty caches and with warm "
    "ones, and of the eager reference; each in a process of its own.",
    "accuracy": "Seconds of training until a test error is reached, of the engine and of the eager reference, by the "
    "same recipe; evaluation does not count.",
    "step": "Time a training step against the eager reference: float32, NCHW, a loss of loops, a wait for each logged "
    "number. Both are checked against float64 first; then memory, energy and where the time goes.",
}
# What a benchmark's flags are beside the shared ones: name -> what add_argument takes, and under ``quick`` its default
# in a smoke run. A flag that is repeated is the benchmark's list of that name: --arch its archs.
NETWORK = {
    "--method": {"type": str, "default": "dhm", "help": "dhm, dsl or baseline"},
    "--precision": {"type": str, "default": "auto", "help": "of the engine: auto, float32, bfloat16, float16"},
}
DATA = {
    "--dataset": {"type": str, "default": "fashion-mnist", "help": "as in `fastdhm train`"},
    "--arch": {"type": str | None, "default": None, "help": "network (default: the data set's usual one)"},
    "--data_dir": {"type": str | None, "default": None, "help": "folder of the data sets"},
    **NETWORK,
}
FLAGS: dict[str, dict[str, dict[str, Any]]] = {
    "loss": {
        "--shape": {"action": "append", "help": "branches x batch x classes, as 3x256x1000; repeatable"},
        "--dtype": {"type": str, "default": "float32", "help": "float32, bfloat16, float16 or float64"},
        "--compiled": {
            "type": str,
            "default": "auto",
            "help": "torch.compile of the loops: on, off, auto (two shapes)",
        },
        "--sweep": {"action": "store_true", "help": "also over branches and classes, with plots"},
    },
    "conv": {"--dtype": {"type": str, "default": "bfloat16", "help": "bfloat16 or float32"}},
    "norm": {
        "--dtype": {"type": str, "default": "bfloat16", "help": "bfloat16 or float32"},
        "--compiled": {"type": str, "default": "auto", "help": "time torch.compile too: on, off, auto"},
    },
    "step": {
        "--arch": {
            "action": "append",
            "default": ["resnet32"],
            "quick": ["resnet8"],
            "help": "network, as in `fastdhm train`; repeatable (default: resnet32)",
        },
        "--image_size": {
            "type": int | None,
            "default": None,
            "quick": 16,
            "help": "side in pixels (default: the paper's)",
        },
        "--batch_size": {
            "type": int | None,
            "default": None,
            "quick": 8,
            "help": "images a step (default: 128 small, 32 large ones)",
        },
        **NETWORK,
        "--compile": {
            "type": str,
            "default": "off",
            "help": "compile the engine's step: off, on, auto (as a long run)",
        },
        "--smoothing": {
            "type": float,
            "default": 0.0,
            "help": "of the reference's mimicking; the released code has 1e-8",
        },
        "--peers": {"type": str | None, "default": None, "help": "those to hold against, such as reference,baseline"},
    },
    "epoch": {
        **DATA,
        "--dataset": DATA["--dataset"] | {"quick": "synthetic:64"},
        "--batch_size": {
            "type": int | None,
            "default": None,
            "quick": 16,
            "help": "images a step (default: the recipe's)",
        },
        "--workers": {"type": int | None, "default": None, "help": "of both loaders (default: as in training)"},
        "--max_steps": {"type": int | None, "default": None, "help": "steps of an epoch (default: all)"},
        "--agreement": {"type": int | None, "default": None, "help": "hold the losses of so many steps together"},
    },
    "startup": {
        "--dataset": {
            "type": str,
            "default": "synthetic",
            "quick": "synthetic:512",
            "help": "as in `fastdhm train`",
        },
        "--arch": {
            "type": str,
            "default": "resnet32",
            "quick": "resnet8",
            "help": "network, as in `fastdhm train`",
        },
        "--method": NETWORK["--method"],
        "--steps": {"type": int, "default": 60, "quick": 8, "help": "steps of each run, half of them at full speed"},
        "--compile": {"type": str, "default": "auto", "help": "of the runs, as in `fastdhm train`"},
    },
    "accuracy": {
        **DATA,
        "--dataset": DATA["--dataset"] | {"quick": "synthetic:256"},
        "--target": {"type": float, "default": 12.0, "quick": 90.0, "help": "error of B0 on the test set, in percent"},
        "--epochs": {
            "type": int | None,
            "default": None,
            "quick": 2,
            "help": "of both schedules (default: the recipe's)",
        },
        "--eval_steps": {"type": int, "default": 50, "quick": 4, "help": "steps between evaluations"},
        "--seeds": {"type": int, "default": 3, "quick": 1, "help": "trainings of each"},
        "--preset": {"type": bool, "default": True, "help": "whether the data set's fast preset takes part"},
    },
    "loader": {
        "--images": {"type": int, "default": 600, "quick": 48, "help": "photographs an epoch"},
        "--workers": {"type": int, "default": 2, "help": "threads or processes of each loader"},
        "--batch_size": {"type": int, "default": 64, "help": "images a batch"},
    },
}
# samples of each peer; 50 elsewhere
ROUNDS = {"conv": 20, "reid": 5, "step": 15, "epoch": 3, "loader": 5, "startup": 3}
ON_THE_CPU = ("conv", "loader", "norm", "reid")
SHARED = ("device", "threads", "rounds", "quick", "out", "json")  # the frame's


def run(argv: list[str]) -> int:
    """``fastdhm bench NAME ARGV``; returns the exit status, 1 if a peer gave a wrong result."""
    name, argv = argv[0], argv[1:]
    flags = dict(FLAGS.get(name, {}))
    if name not in ON_THE_CPU:
        flags["--device"] = {"type": str, "default": "auto", "help": "auto, cpu, cuda, cuda:N"}
    flags["--threads"] = {"type": int | None, "default": None, "help": "threads of torch (default: torch's own)"}
    if name != "accuracy":  # its samples are its seeds
        rounds = ROUNDS.get(name, 50)
        told = f"samples of each peer (default: {rounds}; 1 in a smoke run)"
        flags["--rounds"] = {"type": int, "default": rounds, "quick": 1, "help": told}
    flags["--quick"] = {"action": "store_true", "help": "a smoke run: small, one round, no compiling"}
    flags["--out"] = {"type": str, "default": "bench", "help": "folder for JSON, CSV and plots"}
    flags["--json"] = {"action": "store_true", "help": "print one JSON object on stdout"}
    values = _parse(Parser(f"bench {name}", BENCHES[name]), flags, argv)
    from fastdhm.engine.device import use_processors

    use_processors()
    module, frame = (importlib.import_module(f"fastdhm.benchmarks.{part}") for part in (name, "harness.frame"))
    shared = {key: values.pop(key) for key in SHARED if key in values}
    return module.bench(frame.Frame(name, **shared), **values)


def _parse(parser: Parser, flags: dict[str, dict[str, Any]], argv: list[str]) -> dict[str, Any]:
    """The values of ``flags``, those under ``quick`` by default where ``argv`` asks for a smoke run."""
    lists = {}
    for flag, settings in flags.items():
        settings = {**settings}
        quick = settings.pop("quick", settings.get("default"))
        if "--quick" in argv and "default" in settings:
            settings["default"] = quick
        if settings.get("action") == "append":
            lists[flag.strip("-")] = settings.pop("default", [])
        parser.add_argument(flag, **settings)
    values = parser.parse(argv)
    for key, default in lists.items():
        values[f"{key}s"] = values.pop(key) or default
    return values
