"""The page of a run: whatever its log holds, and as a browser shows it."""

import json
import shutil

import pytest
from answers import drawn_answers, drawn_image

from fastdhm.cli import main
from fastdhm.config import TrainConfig
from fastdhm.engine.saved.checkpoint import save_checkpoint, write_config
from fastdhm.engine.saved.names import LAST, LOG
from fastdhm.page.run import keep_run_page, run_page
from fastdhm.per_class.result import FOLDER, result, write_result

TERMS = {"ce/B0": 1.0, "ce/B1": 2.0, "mimic/B0->B1": 0.1, "mimic/B1->B0": 0.2}
STEP = {"kind": "step", "step": 2, "epoch": 0.5, "loss": 3.0, "lr": 0.1, "images_per_s": 9.0, "data_wait": 0.1, **TERMS}
EPOCH = {
    "kind": "epoch", "step": 4, "epoch": 1.0, "val_side": 32, "peak_mib": 12.0,
    "val_error/B0": 12.345, "val_error/B1": 20.0, "val_ce/B0": 0.5, "val_ce/B1": float("nan"),
}  # fmt: skip


def make_run(folder, *rows, classes=("cat", "dog")):
    config = TrainConfig(epochs=2, arch="resnet8", branches=("B1",), run_dir=str(folder))
    write_config(folder, config)
    save_checkpoint(folder / LAST, config, classes, {"model": {}})
    (folder / LOG).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_page_has_every_part(tmp_path):
    text = run_page(make_run(tmp_path, STEP, EPOCH))
    for part in (
        "12.35",
        "multiply-adds",
        "B0 → B1",
        "learning rate",
        "images per second",
        "waited",
        "12 MiB",
        "cat, dog",
    ):
        assert part in text


def test_a_teacher_has_a_row_of_its_own(tmp_path):
    taught = {name: value for name, value in STEP.items() if "B1" not in name} | {"mimic/teacher->B0": 0.625}
    text = run_page(make_run(tmp_path, taught, EPOCH))
    assert "teacher → B0" in text and "<td>teacher</td><td>0.625</td>" in text.replace(' class="name"', "")


@pytest.mark.parametrize("rows", [[], [STEP]], ids=["no-row", "no-epoch"])
def test_a_run_before_its_first_epoch_has_a_page(tmp_path, rows):
    text = run_page(make_run(tmp_path, *rows))
    assert "No epoch is finished yet" in text and ("training loss" in text) == bool(rows)


def test_class_names_are_text(tmp_path):
    text = run_page(make_run(tmp_path, EPOCH, classes=("<img src=x>", 'a,"b"\n/c')))
    assert "&lt;img src=x&gt;" in text and "<img" not in text


def test_a_live_page_is_loaded_again_until_the_run_ends(tmp_path):
    assert "refresh" in run_page(make_run(tmp_path, EPOCH), live=True)
    assert "refresh" not in run_page(make_run(tmp_path, EPOCH | {"epoch": 2.0}), live=True)


def test_a_page_that_cannot_be_written_costs_the_run_nothing(tmp_path):
    (make_run(tmp_path, EPOCH) / "report.html").mkdir()
    told = []
    keep_run_page(tmp_path, told.append)
    assert len(told) == 1 and "the report is left out: cannot write" in told[0]


@pytest.mark.slow
def test_training_writes_it_after_every_epoch(tmp_path):
    flags = (
        "--dataset synthetic --arch resnet8 --precision float32 --max-steps 2 --batch-size 16 --subset 32 --report true"
    )
    assert main(["train", *flags.split(), "--workers", "0", "--run-dir", str(tmp_path / "run")]) == 0
    text = (tmp_path / "run/report.html").read_text()
    assert "multiply-adds" in text and "The surest mistakes" in text and "B0 after 2 steps" in text


@pytest.mark.parametrize("width", [1200, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.slow
def test_a_browser_shows_it_without_a_network(tmp_path, width, scheme):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium is installed")
    classes = ("<b>", "x" * 300, *(f"class {n}" for n in range(40)))
    make_run(tmp_path, STEP, EPOCH, classes=classes)
    for branch in ("B0", "B1"):
        values = result(drawn_answers(len(classes), 90), classes, drawn_image, "the validation", 4)
        write_result(tmp_path / FOLDER / branch, values)
    assert main(["report", str(tmp_path)]) == 0
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.goto((tmp_path / "report.html").as_uri())
        page.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("svg").count() == 12 and asked == [page.url] and not said
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
        assert dark == (scheme == "dark")
        browser.close()
