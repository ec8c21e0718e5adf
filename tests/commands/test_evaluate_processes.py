"""fastdhm eval and embed by several real processes: what one process gives, and one message if it cannot be."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from many_processes import LIMIT_S, processes
from people_runs import command as people
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from fastdhm.cli import main
from fastdhm.engine.saved.record import read_log
from runs import command

pytestmark = pytest.mark.slow


def fastdhm(*argv, processes):
    """Its exit status, and what it printed; ended after a time limit."""
    argv = [sys.executable, "-m", "fastdhm", *map(str, argv), "--processes", str(processes)]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(argv, capture_output=True, text=True, env=environ, timeout=LIMIT_S)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "run"
    assert main(command(run_dir, "--epochs", "1", "--max-steps", "2")) == 0
    return run_dir


@pytest.fixture
def pictures(tmp_path):
    folder, rng = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i in range(7):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_errors_are_those_of_one_process(run_dir):
    """Of 20 images in batches of 8: a short last batch, and a process without any."""
    argv = ["eval", run_dir, "--device", "cpu", "--json"]
    answers = [fastdhm(*argv, processes=number) for number in (1, 2, 4)]
    assert [status for status, *_ in answers] == [0, 0, 0], answers
    assert len({out for _, out, _ in answers}) == 1 and "network" in json.loads(answers[0][1])
    assert len({err for *_, err in answers}) == 1, "each process says it"


def test_a_network_without_answers_ends_all_and_is_told_once(run_dir, tmp_path):
    with safe_open(run_dir / "network.safetensors", "pt") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state["bn1.bias"][:] = float("nan")
    save_file(state, tmp_path / "n.safetensors", metadata)
    argv = ["eval", str(tmp_path / "n.safetensors"), "--device", "cpu", "--per-class"]
    ended = processes(f"from fastdhm.cli import main\nsys.exit(main({argv!r}))", 2)
    wrong = "".join(err for *_, err in ended)
    assert [child.returncode for child, *_ in ended] == [2, 2] and wrong.count("\n") == 1, wrong
    assert "logits of 20 of 20 images are NaN" in wrong, wrong


@pytest.mark.parametrize("left", [7, 1], ids=["seven", "one"])
def test_embeddings_are_the_bytes_of_one_process(run_dir, pictures, tmp_path, left):
    for i in range(left, 7):
        (pictures / f"{i}.png").unlink()
    written = []
    for number in (1, 2):
        out = tmp_path / f"of{number}.safetensors"
        argv = ["embed", run_dir, pictures, "--out", out, "--batch-size", "2", "--workers", "0", "--device", "cpu"]
        status, said, wrong = fastdhm(*argv, processes=number)
        assert (status, wrong) == (0, "") and said.count("of 64 numbers") == 1
        written.append(out.read_bytes())
    assert written[0] == written[1]


def test_a_bad_picture_that_one_process_reads_ends_all_and_is_named_once(run_dir, pictures, tmp_path):
    whole = (pictures / "3.png").read_bytes()
    (pictures / "3.png").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "e.npy"
    argv = ["embed", run_dir, pictures, "--out", out, "--batch-size", "2", "--workers", "0", "--device", "cpu"]
    status, _, wrong = fastdhm(*argv, processes=2)
    assert status == 2 and wrong.count("\n") == 1 and wrong.count("3.png") == 1, wrong
    assert not out.exists()


def test_people_are_ranked_as_by_one_process_in_eval_and_after_a_training(tmp_path):
    run_dir = tmp_path / "run"
    flags = ["--epochs", "1", "--arch", "resnet8", "--weights", "null", "--freeze-epochs", "0", "--batch-size", "32"]
    status, out, err = fastdhm(*people(run_dir, *flags), processes=2)
    assert status == 0 and out.count("by the stripped network") == 1, out + err
    row = read_log(run_dir)[-1]
    for ranking in ([], ["--rerank", "--flip-average"]):
        argv = ["eval", run_dir, "--device", "cpu", "--workers", "0", "--json", *ranking]
        found = [json.loads(fastdhm(*argv, processes=number)[1]) for number in (1, 2)]
        assert found[0] == found[1]
        assert ranking or row["map_percent"] == found[0]["map_percent"]
