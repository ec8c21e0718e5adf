"""The compiled part of the build; everything else is in pyproject.toml.

``fastdhm._C`` is compiled against the torch it will run with, which is, in this order: the torch that the build can
import (``--no-build-isolation``), the torch of the environment that pip installs into, or, where neither exists, the
newest one, which pip then also installs as a dependency. Without a compiler the package is built without the extension
and works, more slowly.
"""

import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup

TORCH = "torch>=2.6"
# Machine code for these, as far as nvcc knows them: each also runs on what came later in its generation. What is newer
# than the last gets PTX, which its driver compiles. The same list everywhere: machines without a GPU build too.
CUDA_ARCHS = ("7.0", "7.5", "8.0", "9.0", "10.0")

MORE_FLAGS = shlex.split(os.environ.get("FASTDHM_CXXFLAGS", ""))  # the last one of two wins: see tools/sanitize.sh


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


def find_cuda_home():
    """The folder of the CUDA toolkit, named in CUDA_HOME or asked of nvcc, or None.

    torch looks for it two folders above the ``nvcc`` on the path, which may be a script that calls the real one.
    """
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if named or nvcc is None:
        return named
    plan = subprocess.run([nvcc, "--dryrun", "-E", "any.cu"], capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", plan, re.MULTILINE)
    return str(Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parents[1])


def why_no_cuda(torch_cuda, cuda_home):
    """Why CUDA code cannot be compiled by the toolkit in ``cuda_home`` for a torch of CUDA ``torch_cuda``, or None."""
    if torch_cuda is None:
        return "this torch is a build without CUDA"
    major = torch_cuda.split(".")[0]
    remedy = f"install a CUDA {major} toolkit and name its folder in CUDA_HOME"
    nvcc = Path(cuda_home or "/usr", "bin", "nvcc")
    if not nvcc.is_file():
        return f"there is no {nvcc}; {remedy}"
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release ((\d+)\.\d+)", version)
    if release is None or release[2] != major:  # torch itself refuses to build with another major version
        found = f"is of CUDA {release[1]}" if release else "does not say its version"
        return f"{nvcc} {found}, torch of CUDA {torch_cuda}; {remedy}"
    if not any(Path(home, "include", "cuda_runtime.h").is_file() for home in (cuda_home, "/usr")):
        return f"{cuda_home} has no include/cuda_runtime.h; {remedy}"
    # Its own parts are there, and the host's compiler is not one that it refuses.
    trial = [nvcc, "-E", "-Icsrc", str(next(Path("csrc").rglob("*.cu")))]
    result = subprocess.run(trial, capture_output=True, text=True)
    if result.returncode != 0:
        return f"{nvcc} fails: {next(iter(result.stderr.strip().splitlines()), 'it does not say why')}"
    return None


def cuda_archs(cuda_home):
    """The architectures to compile for, as TORCH_CUDA_ARCH_LIST names them; what the user set there is kept."""
    nvcc = Path(cuda_home, "bin", "nvcc")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    archs = [arch for arch in CUDA_ARCHS if f"compute_{arch.replace('.', '')}" in known]
    return os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{';'.join(archs)}+PTX")


def sources(with_cuda):
    """What the extension is compiled from; what needs CUDA is in folders of that name."""
    found = [*Path("csrc").rglob("*.cpp"), *Path("csrc").rglob("*.cu")]
    return sorted(str(path) for path in found if with_cuda or path.parent.name != "cuda")


def limit_jobs():
    """Have ninja compile as many files at once as this process has processors; what the user set in MAX_JOBS stays."""
    file = Path("fastdhm", "system", "processors.py")  # run alone: the package itself would import torch
    os.environ.setdefault("MAX_JOBS", str(runpy.run_path(str(file))["count"]()))


def compiled_parts():
    """Arguments of ``setup`` for the extension: none where it cannot be compiled, after saying why."""
    reason = why_not_compile()
    if reason is not None:
        print(f"\nWARNING: fastdhm is built WITHOUT its C++ extension: {reason}\n", file=sys.stderr)
        return {}

    cuda_home = find_cuda_home()
    if cuda_home is not None:
        os.environ["CUDA_HOME"] = cuda_home  # torch reads it when it is imported
    limit_jobs()
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, is_ninja_available

    reason = why_no_cuda(torch.version.cuda, cuda_home)
    if reason is None:
        archs = cuda_archs(cuda_home)
        print(f"fastdhm: CUDA code is compiled by {cuda_home}/bin/nvcc for {archs}", file=sys.stderr)
        define, make = f"-DFASTDHM_CUDA_ARCHS={json.dumps(archs)}", CUDAExtension
    else:
        print(f"fastdhm: no CUDA code is compiled: {reason}", file=sys.stderr)
        define, make = f"-DFASTDHM_WHY_NO_CUDA={json.dumps(reason)}", CppExtension
    extension = make(
        "fastdhm._C",
        sources(with_cuda=reason is None),
        include_dirs=[str(Path("csrc").absolute())],
        depends=sorted(str(path) for path in Path("csrc").rglob("*.*h")),
        extra_compile_args={
            # torch's headers leave parameters unused. OpenMP is asked for when compiling, for at::parallel_for, and not
            # when linking: its symbols are then those of the one runtime that torch brings along.
            "cxx": ["-O3", "-g0", "-fopenmp", "-Wall", "-Wextra", "-Wno-unused-parameter", define, *MORE_FLAGS],
            "nvcc": ["-O3"],
        },
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension.with_options(use_ninja=is_ninja_available())},
    }


setup(
    # In pyproject.toml setuptools cannot map a package to a folder and also find the others.
    packages=[
        *find_packages(include=["fastdhm", "fastdhm.*"]),
        *(f"fastdhm.{name}" for name in find_packages(include=["kernels", "benchmarks", "benchmarks.*"])),
    ],
    package_dir={"fastdhm.kernels": "kernels", "fastdhm.benchmarks": "benchmarks"},
    # Read by the build backend before it builds; torch is asked for only where the target environment lacks it.
    setup_requires=[] if find_torch() else [TORCH],
    # A frontend runs this file for the requirements, for the metadata and to build; only the last compiles.
    **({} if {"egg_info", "dist_info", "sdist"} & set(sys.argv) else compiled_parts()),
)
