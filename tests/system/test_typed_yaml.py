"""Values of a YAML file are read by the types that they are to have."""

from dataclasses import dataclass

import pytest

from fastdhm.cli.train import resolve_training
from fastdhm.config import TrainConfig
from fastdhm.errors import UserError
from fastdhm.system.typed_yaml import build, read_yaml


def config(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text, "utf-8")
    return build(TrainConfig, read_yaml(tmp_path / "c.yaml"), "c.yaml")


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("lr: 1e-3", 1e-3), ("lr: .5", 0.5), ("lr: 1", 1.0), ("lr: '0.1'", 0.1), ("seed: 1_000", 1000),
        ("seed: 010", 10), ("epochs: 1e2", 100), ("compile: on", "on"), ("compile: off", "off"), ("compile: no", "off"),
        ("compile: true", "on"), ("compile: On", "on"), ("compile: auto", "auto"), ("flip: yes", True),
        ("flip: off", False), ("flip: NO", False), ("branches: B1", ("B1",)), ("branches: B1,B2", ("B1", "B2")),
        ("branches: [B1, B2]", ("B1", "B2")), ("branches: []", ()), ("branches: ~", None), ("branches:", None),
        ("milestones: 30", (30.0,)), ("image_size: 224", 224), ("image_size: [256, 128]", (256, 128)),
        ("dataset: 123", "123"), ("arch: 1:30", "1:30"), ("run_dir: 2026-11-28", "2026-11-28"),
        ("run_dir: null", None), ("run_dir: ~/x", "~/x"), ("run_dir: yes", "yes"), ("method: off", "off"),
        ("clip_grad: null", None), ("workers: 0", 0), ("store_size: 0x10", None),
    ],
)  # fmt: skip
def test_a_value_is_what_its_line_says(tmp_path, line, value):
    name = line.partition(":")[0]
    if line.endswith("0x10"):
        with pytest.raises(UserError, match="store_size is 0x10: must be a whole number or null"):
            config(tmp_path, line)
        return
    read = getattr(config(tmp_path, line), name)
    assert read == value and type(read) is type(value)


def test_what_yaml_has_beside_values_works(tmp_path):
    text = "# a comment\nusual: &usual {lr: 1e-2, seed: 1}\n"
    (tmp_path / "c.yaml").write_text(text + "own:\n  <<: *usual\n  seed: 2\n")
    assert read_yaml(tmp_path / "c.yaml")["own"] == {"lr": "1e-2", "seed": "2"}
    sets = "method: dhm\nsampler: structural\nbranch_sets: {B1+B2: 0.5, none: .5}"
    assert config(tmp_path, sets).branch_sets == {"B1+B2": 0.5, "none": 0.5}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"), (b"- 1\n", "holds"), (b"just text", "holds just text"), (b"lr: [1, ", "line 1"),
        (b"lr: 1\narch: resn\xe9t", "not text in UTF-8: line 2 has the byte 0xe9"), (b"a\x00b: 1", "is not YAML"),
        (b"lr: 1\nlr: 2\n", "line 2: lr is given twice"), (b"seed: 1\nlr:2\nepochs: 3\n", "line 2: could not find"),
        (b"a: 1\n---\nb: 2\n", "line 2"),
        (b"a: !!python/name:os.x ''", "line 1"),
        (b"\tlr: 1", "line 1"), (b"x: &x [*x]", "there is no setting 'x'"),
        (b"batchsize: 3", "there is no setting 'batchsize'; did you mean 'batch_size'"),
        (b"epochs: 1:30", "epochs is 1:30: must be a whole number"), (b"lr: [1]", "lr is .*: must be a number"),
        (b"lr:", "lr is null: must be a number"), (b"flip: maybe", "flip is maybe: must be true or false"),
        (b"compile: maybe", "compile is maybe: must be one of auto, on, off"),
        (b"betas: [1]", "betas is .*: must be a list of 2"),
        (b"mean: {a: 1}", "mean is .*: must be a list of 3"), (b"epochs: 1.5", "epochs is 1.5"),
        (b"epochs: -1", "epochs is -1"),
        (b"seed: " + b"9" * 9000, "seed is 999"), (b"lr: .nan", "lr is nan"), (b"branch_sets: B1", "branch_sets is B1"),
    ],
    ids=lambda part: repr(part)[:30],
)  # fmt: skip
def test_what_cannot_be_taken_is_named_in_one_line(tmp_path, data, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as told:
        build(TrainConfig, read_yaml(path), str(path))
    assert "\n" not in str(told.value) and str(path) in str(told.value) and len(str(told.value)) < 400


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_editors_of_other_systems_save_is_read(tmp_path, encoding):
    (tmp_path / "c.yaml").write_bytes("arch: é\r\n".encode(encoding))
    assert read_yaml(tmp_path / "c.yaml") == {"arch": "é"}


@pytest.mark.parametrize("what", ["gone", "a folder"])
def test_a_file_that_cannot_be_read_is_told(tmp_path, what):
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path if what == "a folder" else tmp_path / "gone.yaml")


@dataclass
class Inner:
    number: float
    names: tuple[str, ...] = ()


@dataclass
class Outer:
    inner: tuple[Inner, ...]
    by_name: dict[str, tuple[tuple[float, float | None], ...]]


def test_what_lies_within_is_read_by_its_types_too():
    values = {"inner": [{"number": "1e3", "names": ["1", "no"]}], "by_name": {"B0": [["1", None], [2, "3"]]}}
    assert build(Outer, values, "x") == Outer((Inner(1000.0, ("1", "no")),), {"B0": ((1.0, None), (2.0, 3.0))})
    with pytest.raises(UserError, match="number is missing"):
        build(Outer, {"inner": [{}], "by_name": {}}, "x")


def test_a_flag_goes_before_the_file_wherever_it_stands(tmp_path):
    (tmp_path / "c.yaml").write_text("dataset: synthetic:80\ncompile: on\nlr: 1e-3\nbatch-size: 8\nseed: 5\n")
    for argv in (["--seed", "7", "--config", f"{tmp_path}/c.yaml"], [f"--config={tmp_path}/c.yaml", "--seed=7"]):
        resolved, resume = resolve_training(argv)
        assert (resolved.dataset, resolved.compile, resolved.lr) == ("synthetic:80", "on", 1e-3)
        assert (resolved.batch_size, resolved.seed, resume) == (8, 7, False)


def test_a_printed_config_is_read_back_as_it_was(tmp_path, capsys):
    flags = ["--dataset", "synthetic", "--branches", "B1", "--image-size", "[32,16]", "--compile", "on"]
    with pytest.raises(SystemExit):
        resolve_training([*flags, "--print_config"])
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert resolve_training(["--config", str(tmp_path / "c.yaml")]) == resolve_training(flags)
