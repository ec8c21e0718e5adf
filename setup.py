"""The compiled part of the build; everything else is in pyproject.toml.

``fastdhm._C`` is compiled against the torch it will run with, which is, in this order: the torch that the build can
import (``--no-build-isolation``), the torch of the environment that pip installs into, or, where neither exists, the
newest one, which pip then also installs as a dependency. Without a compiler the package is built without the extension
and works, more slowly.
"""

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup

TORCH = "torch>=2.6"


def find_torch():
    """Whether torch can be imported, also from where build isolation hides it: the environment being installed into."""
    if importlib.util.find_spec("torch") is None:
        # pip's isolated build runs the target environment's interpreter with its site-packages taken off sys.path.
        # Appended, they lend us torch and its dependencies, and the build's own setuptools still comes first.
        for name in ("purelib", "platlib"):
            path = sysconfig.get_path(name)
            if path not in sys.path and Path(path, "torch", "include").is_dir():
                sys.path.append(path)
    return importlib.util.find_spec("torch") is not None


def why_not_compile():
    """What is missing to compile the extension and how to get it, or None."""
    if not find_torch():
        return f"torch is not installed. Install it ('pip install \"{TORCH}\"') and build again."
    compiler = shlex.split(os.environ.get("CXX", "c++"))[0]
    if shutil.which(compiler) is None:
        return f"no C++ compiler ('{compiler}'). Install one ('apt install g++', or set CXX) and build again."
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "no Python headers (Python.h). Install them ('apt install python3-dev') and build again."
    return None


def compiled_parts():
    """Arguments of ``setup`` for the extension: none where it cannot be compiled, after saying why."""
    reason = why_not_compile()
    if reason is not None:
        print(f"\nWARNING: fastdhm is built WITHOUT its C++ extension: {reason}\n", file=sys.stderr)
        return {}

    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension, is_ninja_available

    cxx_flags = ["-O3", "-g0", "-Wall", "-Wextra", "-Wno-unused-parameter"]  # torch headers leave parameters unused
    sources = sorted(str(path) for path in Path("csrc").glob("*.cpp"))
    headers = sorted(str(path) for path in Path("csrc").glob("*.h"))
    cuda_sources = sorted(str(path) for path in Path("csrc", "cuda").glob("*.cu"))
    has_nvcc = CUDA_HOME is not None and Path(CUDA_HOME, "bin", "nvcc").is_file()
    # A GPU is not asked for: machines without one build for machines with one.
    if cuda_sources and torch.version.cuda is not None and has_nvcc:
        extension = CUDAExtension(
            "fastdhm._C",
            sources + cuda_sources,
            include_dirs=[str(Path("csrc").absolute())],
            depends=headers,
            define_macros=[("FASTDHM_WITH_CUDA", None)],
            extra_compile_args={"cxx": cxx_flags, "nvcc": ["-O3"]},
        )
    else:
        extension = CppExtension("fastdhm._C", sources, depends=headers, extra_compile_args={"cxx": cxx_flags})
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=is_ninja_available())},
    }


setup(
    # In pyproject.toml setuptools cannot map a package to a folder and also find the others.
    packages=[*find_packages(include=["fastdhm", "fastdhm.*"]), "fastdhm.kernels"],
    package_dir={"fastdhm.kernels": "kernels"},
    # Read by the build backend before it builds; torch is asked for only where the target environment lacks it.
    setup_requires=[] if find_torch() else [TORCH],
    # A frontend runs this file for the requirements, for the metadata and to build; only the last compiles.
    **({} if {"egg_info", "dist_info", "sdist"} & set(sys.argv) else compiled_parts()),
)
