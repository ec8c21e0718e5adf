"""Damages every kind of file that fastdhm reads in a thousand ways, and checks how fastdhm reacts.

    python tools/fuzz.py                       1,000 mutations, shared among the kinds
    python tools/fuzz.py --kind config.yaml --count 200 --seed 5
    python tools/fuzz.py --kind last.pt --only 17    one mutation again, with its traceback

A mutation is a pure function of (kind, number). The reader may refuse the file with a ``UserError`` or accept it. It
must not raise another error, take more than some seconds or gigabytes, run code in the file, or accept data that a
checksum would have refused. Each kind runs in its own process: if that dies, the mutation is named.
"""

import argparse
import contextlib
import hashlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS_EACH = 10
GIB_EACH = 12  # of address space, of which torch alone takes some
TRAP = "fuzz-ran-code"  # a file that appears if a payload runs

# Text that was found in settings and logs and made readers fail.
WORDS = (
    b"null", b"~", b"nan", b".nan", b"-.inf", b"1e999", b"-1", b"0", b"99999999999999999999", b"1e-3", b"true", b"on",
    b"[]", b"{}", b"[[[[[[[[", b'"', b"'", b"\\", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\t", b"---\n",
    b"!!python/object/apply:os.system ['touch fuzz-ran-code']", b"&a [*a]", b"*a", b"<<: *a", b"? : :", b"- a\n",
    b"2026-11-28", b"1:30", b"0o17", b"\xf0\x9f\x92\xaf", b"[bold]", "é".encode(), "é".encode("latin-1"), b"/dev/zero",
    b"\n" * 50,
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of file: how to make a good one in a folder, and how to read it.

    ``sealed``: ``read`` returns everything that it took from the file, and this must equal the good file's.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    sealed: bool = False
    text: bool = False


def mutate(data: bytes, kind: str, number: int, text: bool) -> bytes:
    """``data`` with one to three errors in it."""
    draw = random.Random(f"{kind} {number}")
    for _ in range(draw.choice((1, 1, 2, 3))):
        data = draw.choice(_ways(data, draw) + (2 * _text_ways(data, draw) if text else []))()
    return data


def _ways(data: bytes, draw: random.Random) -> list[Callable[[], bytes]]:
    at, length = draw.randrange(len(data) + 1), draw.choice((1, 2, 4, 8, 64, 1000))
    return [
        lambda: data[:at],  # cut short
        lambda: data[:at] + bytes(length) + data[at + length :],  # a hole
        lambda: data[:at] + draw.randbytes(length) + data[at + length :],
        lambda: data[:at] + draw.randbytes(length) + data[at:],
        lambda: data[:at] + data[at + length :],
        lambda: data[:at] + data[max(0, at - length) : at] * 3 + data[at:],
        lambda: data + draw.randbytes(length),
        lambda: _flip(data, draw),
    ]


def _text_ways(data: bytes, draw: random.Random) -> list[Callable[[], bytes]]:
    at, word, lines = draw.randrange(len(data) + 1), draw.choice(WORDS), data.split(b"\n")
    n = draw.randrange(len(lines))
    key, colon, _ = lines[n].partition(b":")
    return [
        lambda: data[:at] + word + data[at:],
        lambda: b"\n".join([*lines[:n], key + colon + b" " + word, *lines[n + 1 :]]),
        lambda: b"\n".join(lines[:n] + lines[n + 1 :]),
        lambda: b"\n".join([*lines[:n], lines[n], *lines[n:]]),
    ]


def _flip(data: bytes, draw: random.Random) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def run_one(kind: Kind, path: Path, good: bytes, expected: object, name: str, number: int) -> str | None:
    """What is wrong with how a mutation is read, or None."""
    from fastdhm.errors import UserError

    path.write_bytes(mutate(good, name, number, kind.text))
    verdict = None
    try:
        with _limit(SECONDS_EACH):
            found = kind.read(path)
        if kind.sealed and found != expected:
            verdict = "taken, though it says something else now"
    except UserError:
        pass
    except TimeoutError:
        verdict = f"takes more than {SECONDS_EACH} s"
    except BaseException as error:
        verdict = f"{type(error).__name__}: {str(error)[:300]}"
        if "--only" in sys.argv:
            traceback.print_exc()
    if Path(TRAP).exists():
        Path(TRAP).unlink()
        verdict = "RAN CODE that the file held"
    return verdict


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def late(_number: int, _frame: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def _train(folder: Path) -> Path:
    """A small finished run on a small folder of images."""
    from fastdhm.cli import main

    run, images = folder / "run", folder / "images"
    if not run.exists():
        _images(images)
        flags = f"--dataset folder:{images} --data-dir {folder / 'data'} --arch resnet8 --epochs 1 --batch-size 4"
        fixed = "--device cpu --precision float32 --loader torch --workers 0 --image-size 16 --eval-every 1"
        with contextlib.redirect_stdout(sys.stderr):
            status = main(["train", *flags.split(), *fixed.split(), "--run-dir", str(run)])
        assert status == 0, status
    return run


def _images(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")


def _read_config(path: Path) -> object:
    from fastdhm.engine.saved.checkpoint import read_config

    return read_config(path.parent)


def _read_log(path: Path) -> object:
    from fastdhm.engine.saved.record import read_log

    return read_log(path.parent)


def _read_network(path: Path) -> object:
    from fastdhm.engine.build import load_trained

    return load_trained(path)


def _resume(path: Path) -> str:
    """Everything that a resumed run takes from the file, as one digest."""
    from fastdhm.engine.run import Run
    from fastdhm.engine.saved.checkpoint import config_from, load_checkpoint

    saved = load_checkpoint(path)
    run = Run(config_from(saved["config"], path), path.parent, tuple(saved["classes"]))
    run.restore(path)
    digest = hashlib.sha256(repr(run.config).encode())
    for value in _tensors(run.state()):
        digest.update(value.numpy().tobytes() if hasattr(value, "numpy") else repr(value).encode())
    return digest.hexdigest()


def _tensors(state: object) -> Iterator[Any]:
    """The parts of a nested state, in order."""
    if isinstance(state, dict):
        state = [part for pair in state.items() for part in pair]
    if isinstance(state, (list, tuple)):
        for part in state:
            yield from _tensors(part)
    else:
        yield state


def _weights(folder: Path, suffix: str) -> Path:
    import torch
    from safetensors.torch import save_file

    from fastdhm import models

    state = models.build("resnet8", 4).strip().state_dict()
    path = folder / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    return path


def _read_weights(path: Path) -> object:
    from fastdhm import models

    return models.load_pretrained(models.build("resnet8", 4), "resnet8", path)


def _beton(folder: Path) -> Path:
    from fastdhm.data.beton.files import beton_path, ensure
    from fastdhm.data.beton.settings import ImageSettings
    from fastdhm.data.sources.load import load_splits

    images = folder / "images"
    if not images.exists():
        _images(images)
    dataset, settings = f"folder:{images}", ImageSettings()
    (source,) = load_splits(dataset, folder / "data", ("train",)).values()
    ensure(source, folder / "data", dataset, "train", settings, workers=1, skip_bad=False, say=lambda text: None)
    return beton_path(folder / "data", dataset, "train", settings)


def _read_beton(path: Path) -> object:
    """Everything that opening checks, and every image; with the deep check, which also covers pixels."""
    from fastdhm.data.beton.files import verify

    return verify(path.with_suffix(".beton"), deep=True, workers=1, progress=False)


def _comparison(folder: Path) -> Path:
    from fastdhm.cli import main

    out = folder / "comparison"
    images = folder / "images"
    if not out.exists():
        _images(images)
        flags = f"--dataset folder:{images} --data-dir {folder / 'data'} --arch resnet8 --epochs 1 --batch-size 4"
        fixed = "--device cpu --precision float32 --loader torch --workers 0 --image-size 16 --methods baseline"
        with contextlib.redirect_stdout(sys.stderr):
            status = main(["compare", *flags.split(), *fixed.split(), "--seeds", "1", "--out", str(out)])
        assert status == 0, status
    return out / "compare.yaml"


def _read_comparison(path: Path) -> object:
    from fastdhm.compare.directory import read_settings

    return read_settings(path.parent)


def _picture(form: str, mode: str = "RGB", **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        import numpy as np
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert("RGB" if mode == "I;16" else mode)
        if mode == "I;16":
            image = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (33, 47), dtype=np.uint16))
        path = folder / f"picture.{form}"
        image.save(path, **options)
        return path

    return make


def _read_picture(path: Path) -> object:
    from fastdhm.data.images.read import read_image

    image = read_image(path, (0, 255))  # a range for floats of any size
    assert image.mode == "RGB", image.mode
    return image


def _in_run(name: str) -> Callable[[Path], Path]:
    return lambda folder: _train(folder) / name


KINDS = {
    "config.yaml": Kind(_in_run("config.yaml"), _read_config, text=True),
    "log.jsonl": Kind(_in_run("log.jsonl"), _read_log, text=True),
    "last.pt": Kind(_in_run("last.pt"), _resume, sealed=True),
    "network.safetensors": Kind(_in_run("network.safetensors"), _read_network),
    "weights.pt": Kind(lambda folder: _weights(folder, ".pt"), _read_weights),
    "weights.safetensors": Kind(lambda folder: _weights(folder, ".safetensors"), _read_weights),
    "compare.yaml": Kind(_comparison, _read_comparison, text=True),
    "beton": Kind(_beton, _read_beton, sealed=True),
    "manifest": Kind(lambda folder: _beton(folder).with_suffix(".json"), _read_beton, text=True),
    **{
        f"picture {' '.join(map(str, (form, *options.values())))}": Kind(_picture(form, **options), _read_picture)
        for form, options in (
            ("jpg", {}), ("png", {}), ("gif", {}), ("bmp", {}), ("webp", {}), ("tif", {}), ("ppm", {}),
            ("png", {"mode": "P", "transparency": 3}), ("png", {"mode": "I;16"}), ("tif", {"mode": "F"}),
            ("jpg", {"mode": "CMYK"}), ("tif", {"compression": "tiff_lzw"}),
        )
    },
}  # fmt: skip


def run_kind(name: str, numbers: range) -> int:
    """Read the mutations of a kind in this process; prints those that are read wrongly and returns their number."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kind, failures = KINDS[name], 0
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        os.chdir(folder)
        path = kind.make(Path(folder))
        good = path.read_bytes()
        expected = kind.read(path)
        resource.setrlimit(resource.RLIMIT_AS, (GIB_EACH * 2**30, GIB_EACH * 2**30))
        for number in numbers:
            print(json.dumps({"number": number}), flush=True)
            verdict = run_one(kind, path, good, expected, name, number)
            if verdict:
                failures += 1
                print(json.dumps({"number": number, "verdict": verdict}), flush=True)
        os.chdir("/")
    return failures


def run_apart(name: str, numbers: range) -> dict[int, str]:
    """The same in its own process: number of a mutation -> what is wrong."""
    command = [sys.executable, __file__, "--here", "--kind", name, "--seed", str(numbers.start)]
    limit = 120 + SECONDS_EACH * len(numbers)
    run = subprocess.run([*command, "--count", str(len(numbers))], capture_output=True, text=True, timeout=limit)
    rows = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    failures = {row["number"]: row["verdict"] for row in rows if "verdict" in row}
    if run.returncode not in (0, 1) or not rows:
        last = rows[-1]["number"] if rows else numbers.start
        failures[last] = f"the process ended with status {run.returncode}: {run.stderr.strip()[-500:]}"
    return failures


def main() -> int:
    """The command; the exit status is 1 if a mutation is read wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind (may be repeated)")
    parser.add_argument("--count", type=int, help="mutations a kind (default: 1,000 shared among the kinds)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--only", type=int, help="one mutation, in this process, with its traceback")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    kinds = given.kind or list(KINDS)
    if given.only is not None:
        return int(run_kind(kinds[0], range(given.only, given.only + 1)) > 0)
    count = given.count or math.ceil(1000 / len(kinds))
    numbers = range(given.seed, given.seed + count)
    if given.here:
        return int(run_kind(kinds[0], numbers) > 0)
    wrong = 0
    for name in kinds:
        failures = run_apart(name, numbers)
        print(f"{name}: {count} mutations, {len(failures)} read wrongly", flush=True)
        for number, verdict in failures.items():
            print(f"  --kind '{name}' --only {number}: {verdict}", flush=True)
        wrong += len(failures)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
