"""Builds the extension fused_rnn._C: operators by g++, CPU kernels once per instruction set, CUDA kernels by nvcc.

Environment:
    CXX                    the C++ compiler (g++)
    FUSED_RNN_CUDA         auto: with CUDA if a toolkit is found; 0: never; 1: always, with an error without a toolkit
    FUSED_RNN_CUDA_ARCHS   the GPU architectures, such as "80;90a" (default), or "native" for those of this machine's
                           GPUs; the last one is also included as PTX, without its letter, for newer GPUs
    MAX_JOBS               how many compilers may run at the same time
"""

import functools
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup

try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    sys.exit(
        "fused_rnn is built against the PyTorch that it will run with, and none is installed.\n"
        "Install it first, then build without isolation:\n"
        "    pip install torch==2.13.0 setuptools pybind11 ninja\n"
        "    pip install --no-build-isolation ."
    )

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
CXX = os.environ.get("CXX", "g++")

# The same macros and flags with which ATen compiles its kernels for each instruction set; at::vec depends on them.
INSTRUCTION_SETS = {"DEFAULT": ""}
if platform.machine() in ("x86_64", "AMD64"):
    INSTRUCTION_SETS["AVX2"] = "-mavx2 -mfma -mf16c"
    INSTRUCTION_SETS["AVX512"] = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mprefer-vector-width=512"
MACROS = [f"FUSED_RNN_HAS_{name}" for name in INSTRUCTION_SETS]

CXX_FLAGS = (
    "-std=c++20 -O3 -fPIC -fopenmp -fvisibility=hidden -fno-math-errno -Wall -Wextra -Wno-unused-parameter"
    " -Wno-uninitialized -Wno-maybe-uninitialized"  # GCC's own AVX-512 headers cause these warnings
)
CUDA_FLAGS = (
    "-std=c++20 -O3 --expt-relaxed-constexpr -Xcompiler -fPIC -Xcompiler -fvisibility=hidden -Werror all-warnings"
)


def version() -> str:
    """Reads the version from _version.py, without importing the package."""
    names: dict[str, str] = {}
    exec((ROOT / "fused_rnn" / "_version.py").read_text(), names)
    return names["__version__"]


def find_cuda() -> Path | None:
    """Returns the folder of the CUDA toolkit to build with, or None to build without."""
    wanted = os.environ.get("FUSED_RNN_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"FUSED_RNN_CUDA must be auto, 0 or 1, not {wanted!r}.")
    if wanted == "0":
        return None
    on_path = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", on_path and Path(on_path).resolve().parent.parent]
    for candidate in candidates:
        if (
            candidate
            and (Path(candidate) / "bin" / "nvcc").exists()
            and (Path(candidate) / "include" / "cuda_runtime.h").exists()
        ):
            return Path(candidate)
    if wanted == "1":
        sys.exit("FUSED_RNN_CUDA=1, but no CUDA toolkit was found: set CUDA_HOME to its folder, or FUSED_RNN_CUDA=0.")
    return None


@functools.cache
def cuda_architectures() -> list[str]:
    """Returns the GPU architectures to compile for, such as ["80", "90a"]."""
    wanted = os.environ.get("FUSED_RNN_CUDA_ARCHS", "80;90a")
    if wanted != "native":
        return wanted.replace(",", ";").split(";")
    capabilities = compute_capabilities()
    if not capabilities:
        sys.exit(
            "FUSED_RNN_CUDA_ARCHS=native, but there is no NVIDIA GPU on this machine: neither PyTorch nor nvidia-smi "
            "sees one.\nName the architectures to build for, such as FUSED_RNN_CUDA_ARCHS=90a."
        )
    # The kernels use instructions of Hopper that only the architecture-specific target sm_90a has.
    return ["90a" if capability == (9, 0) else "{}{}".format(*capability) for capability in sorted(set(capabilities))]


def compute_capabilities() -> list[tuple[int, int]]:
    """Returns the compute capability of each GPU of this machine, such as (9, 0)."""
    if torch.cuda.is_available():
        return [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
    # The extension can be built for a GPU against a PyTorch without CUDA, which cannot see it.
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        pairs = [line.strip().split(".") for line in answer.splitlines()]
        return [(int(major), int(minor)) for major, minor in pairs]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def uses_hopper(source: Path) -> bool:
    """Returns whether kernels use instructions of Hopper that only its architecture-specific target has."""
    is_convolution = CSRC / "cuda" / "conv" in source.parents and not source.stem.startswith("mma_")
    return is_convolution or source.stem.startswith("warpgroup_")


def gencode(architectures: list[str], hopper: bool) -> str:
    """Returns nvcc's -gencode flags: machine code for each architecture, and PTX of the last one for newer GPUs.

    Newer GPUs accept PTX of compute_90, but not of compute_90a. So machine code for sm_90a is compiled from compute_90,
    too, and the compiler refuses instructions that only compute_90a has, but for those kernels that exist for
    ``hopper`` alone.
    """
    generic = [arch.rstrip("af") for arch in architectures]
    sources = architectures if hopper else generic
    flags = [f"-gencode=arch=compute_{arch},code=sm_{full}" for arch, full in zip(sources, architectures, strict=True)]
    return " ".join([*flags, f"-gencode=arch=compute_{generic[-1]},code=compute_{generic[-1]}"])


class BuildKernels(cpp_extension.BuildExtension):
    """torch's BuildExtension, but all objects except that of bindings.cpp are built beforehand by a build.ninja.

    BuildExtension alone has one set of flags for all files, and refuses .cu files under a CPU build of torch.
    """

    def build_extension(self, ext: Extension) -> None:
        """Builds the objects, and links the extension with them."""
        # A fixed folder, since setuptools uses a new one for each editable install, so that nothing would be reused.
        folder = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{torch.__version__}"
        folder.mkdir(parents=True, exist_ok=True)
        objects = self.write_ninja(folder)
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        subprocess.run([sys.executable, "-m", "ninja", "-C", str(folder), *jobs], check=True)
        ext.extra_objects = objects
        ext.depends = objects
        super().build_extension(ext)

    @staticmethod
    def write_ninja(folder: Path) -> list[str]:
        """Writes folder/build.ninja and returns the objects that it makes."""
        includes = " ".join(f"-isystem {path}" for path in cpp_extension.include_paths())
        depfile = " -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc"
        defines = " ".join(f"-D{name}=1" for name in MACROS)
        if CUDA_HOME is not None:
            defines += " -DFUSED_RNN_CUDA=1"
        lines = [
            f"cxx = {CXX} {CXX_FLAGS} {defines} -I{CSRC} {includes}",
            "rule cxx\n  command = $cxx $flags" + depfile,
        ]
        objects = []

        def build(rule: str, source: Path, variant: str = "", flags: str = "") -> None:
            # The object has the path of its source, so that files in different folders may have the same name.
            path = source.relative_to(CSRC).with_suffix(f"{variant and '.'}{variant}.o")
            objects.append(str(folder / path))
            lines.append(f"build {objects[-1]}: {rule} {source}\n  flags = {flags}")

        for source in sorted((CSRC / "ops").rglob("*.cpp")):
            if CUDA_HOME is not None or CSRC / "ops" / "cuda" not in source.parents:
                build("cxx", source)
        for name, flags in INSTRUCTION_SETS.items():
            for source in sorted((CSRC / "cpu").rglob("*_kernel.cpp")):
                build("cxx", source, name, f"{flags} -DCPU_CAPABILITY={name} -DCPU_CAPABILITY_{name}")
        if CUDA_HOME is not None:
            lines.append(f"nvcc = {CUDA_HOME / 'bin' / 'nvcc'} {CUDA_FLAGS} -I{CSRC}")
            # The output of ptxas, with registers and spills, is saved beside the object, where a test reads it.
            lines.append(
                "rule cuda\n  command = $nvcc $flags -Xptxas -v -MMD -MF $out.d -c $in -o $out 2> $out.log"
                " || (cat $out.log; exit 1)\n  depfile = $out.d\n  deps = gcc"
            )
            hopper = " -DFUSED_RNN_HOPPER" if "90a" in cuda_architectures() else ""
            for source in sorted((CSRC / "cuda").rglob("*.cu")):
                flags = gencode(cuda_architectures(), uses_hopper(source))
                build("cuda", source, flags=flags + (hopper if source.stem == "device_info" else ""))
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        return objects


CUDA_HOME = find_cuda()


def extension() -> Extension:
    """Returns the extension, whose only source is bindings.cpp; BuildKernels adds all other objects."""
    macros = [(name, "1") for name in MACROS]
    libraries, library_dirs = [], []
    if CUDA_HOME is not None:
        macros += [("FUSED_RNN_CUDA", "1"), ("FUSED_RNN_CUDA_ARCHS", f'"{";".join(cuda_architectures())}"')]
        libraries += ["cudart_static", "rt", "dl", "pthread"]
        library_dirs += [str(CUDA_HOME / "lib64")]
    return cpp_extension.CppExtension(
        "fused_rnn._C",
        ["csrc/bindings.cpp"],
        include_dirs=[str(CSRC)],
        define_macros=macros,
        extra_compile_args=CXX_FLAGS.split(),
        extra_link_args=["-fopenmp"],
        libraries=libraries,
        library_dirs=library_dirs,
    )


# Benchmarks and tests run the examples, too.
EXAMPLES = ["rich", "matplotlib", "scikit-learn", "statsmodels", "constriction", "pillow"]

setup(
    name="fused_rnn",
    version=version(),
    description="Fused LSTM, GRU, RNN and masked-convolution kernels for PyTorch",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.10",
    packages=find_packages(include=["fused_rnn", "fused_rnn.*"]),
    package_data={"fused_rnn": ["py.typed", "*.pyi"]},
    ext_modules=[extension()],
    cmdclass={"build_ext": BuildKernels.with_options(use_ninja=True)},
    install_requires=[f"torch=={torch.__version__.split('+')[0]}", "numpy"],
    extras_require={
        "bench": [*EXAMPLES, "onnx", "onnxruntime"],
        "examples": EXAMPLES,
        "onnx": ["onnx", "onnxscript"],
        "test": ["pytest", "expecttest", *EXAMPLES],
    },
)
