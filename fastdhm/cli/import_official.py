"""``fastdhm import-official``: the checkpoints that the paper's authors released."""

from fastdhm.cli.parser import Parser
from fastdhm.config import TrainConfig
from fastdhm.recipes import official
from fastdhm.system.paths import expanded


def run(argv: list[str]) -> int:
    """``fastdhm import-official``; returns the exit status."""
    parser = Parser(
        "import-official",
        "Read a checkpoint of the code that the paper's authors released, and write it as a run directory: what eval "
        "and embed take, with the plain network in it. Nothing in the file is executed.",
    )
    parser.add_argument("file", type=str, help="what their scripts saved, such as model_best.pth.tar")
    parser.add_argument(
        "--arch", type=str, required=True,
        help="its architecture by our name, such as resnet18, resnet32, wrn-28-10, densenet-bc-100-12",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", type=str | None, default=None,
        help="what it was trained on, as in `fastdhm train`: sets image size, normalisation and what eval judges it on "
        "(default: imagenet, or cifar100 for the networks of small images)",
    )  # fmt: skip
    parser.add_argument("--data_dir", type=str | None, default=None, help="folder of the data sets, for eval")
    parser.add_argument("--out", type=str | None, default=None, help="folder to write (default: a new one under runs/)")
    values = parser.parse(argv)
    config = TrainConfig(
        **official(values["dataset"], values["arch"]), data_dir=values["data_dir"], run_dir=values["out"]
    )
    from fastdhm.commands.import_official import import_official

    import_official(expanded(values["file"]), config)
    return 0
