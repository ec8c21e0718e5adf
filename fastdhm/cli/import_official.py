"""``fastdhm import-official``: the checkpoints that the paper's authors released."""

from fastdhm.cli.parser import Parser
from fastdhm.config import TrainConfig
from fastdhm.recipes import official
from fastdhm.system.paths import expanded


def run(argv: list[str]) -> int:
    """``fastdhm import-official``; returns the exit status."""
    parser = Parser(
        "import-official",
        "Read a checkpoint of the code that the paper's authors released, and write it as a run directory for eval and "
        "embed, with the plain network in it. Nothing in the file is executed.",
    )
    parser.add_argument("file", type=str, help="File that their scripts saved, such as model_best.pth.tar.")
    parser.add_argument(
        "--arch", type=str, required=True,
        help="Its network, such as resnet18, wrn-28-10 or densenet-bc-100-12.",
    )  # fmt: skip
    parser.flag("--dataset", "Images that it learnt from. (default: imagenet; cifar100 for networks of small images)")
    parser.flag("--data_dir", "Folder of the data sets, for eval. (default: ~/.cache/fastdhm)")
    parser.flag("--out", "Folder that it writes. (default: a new one under runs/)")
    values = parser.parse(argv)
    config = TrainConfig(
        **official(values["dataset"], values["arch"]), data_dir=values["data_dir"], run_dir=values["out"]
    )
    from fastdhm.commands.import_official import import_official

    import_official(expanded(values["file"]), config)
    return 0
