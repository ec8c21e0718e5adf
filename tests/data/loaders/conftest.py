"""Loaders of a small training set."""

import pytest
from batches import OPTIONS, SYNTHETIC

from fastdhm.data.loaders.build import build_loader
from fastdhm.data.loaders.loader import LoaderOptions


@pytest.fixture(scope="session")
def make(build_raw):
    """``make(kind, ...)``: a loader of a small training set; equal ones are shared, as each of FFCV's compiles anew."""
    made = {}

    def get(kind, dataset=SYNTHETIC, settings=None, **options):
        source, path = build_raw(dataset, settings)
        key = (kind, path, *sorted(options.items()))
        if key not in made:
            made[key] = build_loader(kind, LoaderOptions(**{**OPTIONS, **options}), source=source, beton=path)
        return made[key]

    yield get
    for loader in made.values():
        loader.close()
