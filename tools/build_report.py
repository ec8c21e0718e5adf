"""Prints in one line how the C++ extension was built and for which GPUs, for the log of a set-up."""

from fastdhm.ops import _extension

if _extension.available():
    info = _extension.require("the report").build_info()
    cuda = f"CUDA code for {info['cuda_archs']}" if info["cuda"] else f"NO CUDA code: {info['why_no_cuda']}"
    print(f"fastdhm: C++ extension built by {info['compiler']} for torch {info['torch']}; {cuda}")
else:
    print(f"fastdhm: no C++ extension: {_extension.reason()}")
