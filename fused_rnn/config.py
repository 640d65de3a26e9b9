"""Reports how this copy of the package was built and what it uses on this machine, and has its settings."""

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


def set_debug(enabled: bool) -> None:
    """Enable or disable checks that cost too much to run always.

    So far there is one: the values of ``lengths`` that lie on a GPU. To check them, every call waits for the GPU, which
    a CUDA graph cannot capture. Without it a length that is larger than the number of time steps counts as that number,
    and a negative one as 0. Lengths on a CPU are always checked.

    Args:
        enabled: whether to check, in all threads, from now on.

    Example:
        >>> import fused_rnn
        >>> fused_rnn.set_debug(True)  # lengths out of range raise a ValueError on a GPU, too
        >>> fused_rnn.set_debug(False)
    """
    _C.set_debug(enabled)


def set_multiprocessor_limit(limit: int | None) -> None:
    """Limit how many multiprocessors of a GPU the persistent kernels of recurrent layers take.

    A kernel that runs beside a layer then finds the others free, such as one of NCCL, which communicates between GPUs.
    The limit holds for each launch of a persistent kernel, and not for the products of matrices before and after, nor
    for the stepwise path, whose kernels end after a few microseconds. A layer whose recurrent weights do not fit on so
    few multiprocessors runs stepwise. A CUDA graph keeps the plans with which it was captured.

    Args:
        limit: the most multiprocessors of a launch, on every GPU and in all threads, from now on; None for all.

    Raises:
        ValueError: ``limit`` is less than 1.

    Example:
        >>> import fused_rnn
        >>> fused_rnn.set_multiprocessor_limit(116)  # of the 132 of an H100, 16 stay free
        >>> fused_rnn.set_multiprocessor_limit(None)
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be None or at least 1, got {limit}")
    if hasattr(_C, "set_multiprocessor_limit"):  # otherwise there are no such kernels
        _C.set_multiprocessor_limit(0 if limit is None else limit)
