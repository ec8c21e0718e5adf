"""The one place that imports FFCV, and that knows why it could not."""

from __future__ import annotations

import functools
import warnings
from types import SimpleNamespace

from fastdhm.system import processors

HOW_TO_GET = (
    "Install its system libraries with 'apt-get install libopencv-dev libturbojpeg0-dev pkg-config' and then "
    "'pip install \"fastdhm[ffcv]\"', or choose the torch loader."
)


def why_not() -> str | None:
    """The reason why FFCV cannot be used here, or None."""
    return _load()[1]


def load() -> SimpleNamespace:
    """The parts of FFCV that we use; ask ``why_not`` first."""
    parts, reason = _load()
    if parts is None:
        raise ImportError(reason)
    return parts


@functools.cache
def _load() -> tuple[SimpleNamespace | None, str | None]:
    import torch

    torch_threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it uses what later Pythons have announced to remove
            return _parts(), None
    # A library that is missing or does not fit shows as ImportError, OSError or, from numba, as anything.
    except Exception as error:
        return None, f"FFCV cannot be imported ({type(error).__name__}: {error})"
    finally:
        torch.set_num_threads(torch_threads)  # importing FFCV sets it to 1


def _parts() -> SimpleNamespace:
    import numba.typed

    if processors.count() == 1:
        # TBB, numba's first choice, has no thread of its own on one processor: what the loader's thread left to it is
        # never done, and the process waits for that at its end, for ever.
        numba.config.THREADING_LAYER_PRIORITY = ["omp", "tbb", "workqueue"]
    # FFCV keeps two numbers in a compiled dictionary; to compile it is more than half of the import's time.
    compiled, numba.typed.Dict = numba.typed.Dict, dict
    try:
        import ffcv.fields.rgb_image
    finally:
        numba.typed.Dict = compiled
    import ffcv.libffcv
    import ffcv.loader.epoch_iterator
    import ffcv.pipeline.allocation_query
    import ffcv.pipeline.operation
    import ffcv.pipeline.pipeline_spec
    import ffcv.transforms
    import ffcv.types

    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)  # importing FFCV sets this to 1 too
    return SimpleNamespace(
        numba=numba,
        types=ffcv.types,
        Loader=ffcv.loader.Loader,
        EpochIterator=ffcv.loader.epoch_iterator.EpochIterator,
        Compiler=ffcv.pipeline.compiler.Compiler,
        PipelineSpec=ffcv.pipeline.pipeline_spec.PipelineSpec,
        Operation=ffcv.pipeline.operation.Operation,
        AllocationQuery=ffcv.pipeline.allocation_query.AllocationQuery,
        ToTensor=ffcv.transforms.ToTensor,
        imdecode=ffcv.libffcv.imdecode,
        JPG=int(ffcv.fields.rgb_image.IMAGE_MODES["jpg"]),
    )
