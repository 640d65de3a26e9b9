"""Reports how this copy of the package was built, and what it uses on this machine."""

import torch

from fused_rnn import _C
from fused_rnn._version import __version__


def show_config() -> None:
    """Print the versions, the compiler, the instruction sets built and chosen, and the CUDA version and devices.

    The environment variable ATEN_CPU_CAPABILITY (default, avx2 or avx512) selects a lower instruction set, as in torch.

    Example:
        >>> import fused_rnn
        >>> fused_rnn.show_config()  # doctest: +ELLIPSIS
        fused_rnn         ...
    """
    info = _C.build_info()
    cuda = f"{info['cuda_version']}, architectures {info['cuda_archs']}" if info["cuda_version"] else "none"
    pairs = ", with AVX512_BF16" if info["multiplies_pairs"] else ""
    lines = {
        "fused_rnn": __version__,
        "torch": torch.__version__,
        "compiler": info["compiler"],
        "instruction sets": f"{', '.join(info['cpu_capabilities'])} built, {info['cpu_capability']} chosen{pairs}",
        "CUDA built with": cuda,
        "CUDA devices": info["cuda_devices"],
    }
    for name, value in lines.items():
        print(f"{name:<17} {value}")
