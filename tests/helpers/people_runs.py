"""Small runs on drawn people."""

import functools

from fastdhm.data.sources import drawn_people

# 8 people to train on in 128 images, 4 batches an epoch; 4 others to tell apart. Too few to learn anything general.
FLAGS = "--dataset reid-synthetic:8 --image-size [32,16] --device cpu --precision float32 --compile off"

_draw = drawn_people.synthetic_reid


@functools.cache
def drawn(train_identities, test_identities):
    """The people of a run, once, and as small as it reads them: drawing takes most of a short run."""
    return _draw(train_identities, test_identities, (32, 16))


def command(run_dir, *flags):
    folders = ["--run-dir", str(run_dir), "--data-dir", str(run_dir.parent / "data")]
    return ["train", *FLAGS.split(), "--loader", "torch", "--workers", "0", *folders, *flags]
