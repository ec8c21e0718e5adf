"""fastdhm models: every family, the numbers of the inventory, and what a wrong name is told."""

import json
import re
import sys

import pytest

from fastdhm import models
from fastdhm.cli import main
from fastdhm.models.cost import short


def listed(capsys, *argv):
    assert main(["models", *argv]) == 0
    return capsys.readouterr().out


def test_alone_it_lists_the_examples_of_every_family_and_how_others_are_named(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    counted = []

    def inventory(arch, num_classes=None, image_size=None, branches=None):
        counted.append(arch)  # the numbers of a small one for all: counting a thousand layers takes seconds
        return inventory.of("resnet8", num_classes, image_size, branches)

    inventory.of = models.inventory
    monkeypatch.setattr(models, "inventory", inventory)
    monkeypatch.setitem(sys.modules, "timm", None)
    text = " ".join(listed(capsys).split())
    assert counted == [name for family in models.FAMILIES for name in family.examples if not name.startswith("timm")]
    for family in models.FAMILIES:
        assert family.rule in text
    assert "torchvision:mobilenet_v2" in text, "a name of the table is cut"
    assert "fastdhm models resnet56" in text


def test_numbers_are_those_of_the_inventory(capsys):
    argv = ["resnet20", "wrn-10-2", "--image-size", "[48,24]", "--num-classes", "7"]
    rows = json.loads(listed(capsys, *argv, "--json"))
    cost = models.inventory("wrn-10-2", 7, (48, 24))
    assert list(rows) == ["resnet20", "wrn-10-2"]
    row = rows["wrn-10-2"]
    assert (row["image_size"], row["num_classes"]) == ([48, 24], 7)
    assert {name: (part["params"], part["macs"]) for name, part in row["branches"].items()} == {
        name: (part.params, part.macs) for name, part in cost.branches.items()
    }
    assert row["step_ratio"] == cost.step_ratio
    table = listed(capsys, *argv)
    line = next(line for line in table.splitlines() if line.strip().startswith("wrn-10-2"))
    parts = [short(number) for part in cost.branches.values() for number in (part.params, part.macs)]
    assert line.split() == ["wrn-10-2", *parts, f"{cost.step_ratio:.2f}x"]


@pytest.mark.parametrize(
    "argv",
    [["resnet18", "--branches", "[B1,B2,B3]"], ["torchvision:mobilenet_v3_small", "resnet8", "densenet-bc-16-12"]],
    ids=["three branches", "families"],
)  # fmt: skip
def test_a_table_fits_the_terminal_whole(argv, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = listed(capsys, *argv)
    table = [line.rstrip() for line in text.splitlines() if not line.startswith("MACs")]
    assert max(map(len, table)) <= 80
    assert "…" not in text
    assert all(name in text for name in argv if ":" in name or ("-" not in name[:2] and "[" not in name))


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (999, "999"), (1000, "1.00k"), (81_092, "81.1k"), (999_400, "999k"), (999_600, "1.00M"),
     (9_996_000, "10.0M"), (99_960_000, "100M"), (11_689_512, "11.7M"), (1_814_073_344, "1.81G")],
)  # fmt: skip
def test_three_digits_and_a_unit(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("resnet51", r"resnet51 has 51 layers: must be 6n\+2, n at least 1. The nearest is resnet50"),
        ("resnet8 wrn-27-10", r"wrn-27-10 has 27 layers: must be 6n\+4.*wrn-28-10"),
        ("resnet32 --branches [B3]", "unknown branch of resnet32 'B3'"),
        ("torchvision:vit_b_16", "no stage was found.*EncoderBlock"),
        ("torchvision:resnet19", "torchvision has no network 'resnet19'; did you mean torchvision:resnet1"),
        ("resnet8 --num-classes 1", "num_classes is 1"),
        ("resnet8 --image-size 0", "image_size is 0"),
        ("mobilenet --image-size many", "image_size is many"),
        ("torchvision:vgg11 --image-size 8", "torchvision:vgg11 does not run on images of 8x8 pixels"),
    ],
)
def test_a_mistake_is_one_line(argv, message, capsys):
    assert main(["models", *argv.split()]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err
