"""``fastdhm export``: a trained network for other programs."""

from fastdhm.cli.parser import Parser
from fastdhm.system.paths import expanded

EXAMPLES = """\
Examples:
  # writes runs/first/network.onnx
  fastdhm export runs/first

  # takes uint8 pixels: the normalisation is in the file
  fastdhm export runs/first --preprocess --out cats.onnx

  # int8 weights and activations, with the error that this costs
  fastdhm export runs/first --int8

  # for torch alone, without fastdhm
  fastdhm export runs/first --format torch-export
"""


def run(argv: list[str]) -> int:
    """``fastdhm export``; returns the exit status."""
    parser = Parser(
        "export",
        "Write the plain network as ONNX or as a program of torch.export, for batches of any size. It is first run on "
        "images, and its logits are compared with the network's. The file says its classes, image size and "
        "normalisation.",
        epilog=EXAMPLES,
    )
    parser.add_argument("path", type=str, help="Run directory, checkpoint (.pt) or network (.safetensors).")
    parser.flag("--format", "Form of the file: onnx or torch-export.", default="onnx")
    parser.flag("--out", "New file to write. (default: network.onnx, .int8.onnx or .pt2 beside it)", metavar="FILE")
    parser.flag("--branch", "Network: a branch such as B1, or ensemble, of a run or a checkpoint. (default: the run's)")
    parser.switch("--preprocess", "Include the normalisation: the input is uint8 images.")
    parser.flag("--images", "Folder of images to check on. (default: the run's validation)", metavar="FOLDER")
    parser.switch("--int8", "Quantize it, on training images of the run; needs onnx.")
    values = parser.parse(argv)
    from fastdhm.commands.export import export
    from fastdhm.engine.device import use_processors

    use_processors()
    out, images = (expanded(given) if given else None for given in (values.pop("out"), values.pop("images")))
    export(expanded(values.pop("path")), out=out, images=images, **values)
    return 0
