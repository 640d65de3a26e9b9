"""A process that computes layers with ever less memory to allocate, until each call fails, and then with enough again.

An allocation that fails in a kernel must raise, on whatever thread it was tried; an exception that leaves a parallel
region would end the process. It prints one line for each layer: its name and how many of its calls failed.
"""

import ctypes
import os
import resource
from collections.abc import Iterator
from itertools import product

import torch
from comparing import assert_identical
from torch import Tensor, nn

import fused_rnn
from fused_rnn import _C

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
# The memory with which a sweep begins, in bytes, and the steps in which it becomes less, as a factor.
MOST = 16 << 20
FACTOR = 0.5
# From this size on, glibc maps each block of memory by itself, so that it counts against the limit. What is smaller,
# as nearly everything is that the interpreter, PyTorch and OpenMP allocate, gets the memory that it had before.
SMALL = 1 << 14
# How much of the memory that was freed before stays with the process during a sweep, for what is smaller.
KEPT = 1 << 17
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(SMALL),
    "MALLOC_TOP_PAD_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_ARENA_MAX": "1",
    "PYTHONMALLOC": "malloc",
}


def layers() -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield the name, the module and the input of each layer, whose kernels take every kind of temporary memory."""
    sizes = {
        "packed": (12, 27, 64, 96),
        "in step": (1, 40, 256, 256),
        "in place": (2, 2, 200, 100),
        "input first": (30, 2, 64, 96),
    }
    for name, (time, batch, inputs, hidden) in sizes.items():
        input = torch.randn(time, batch, inputs)
        yield f"LSTM {name}", fused_rnn.LSTM(inputs, hidden, bidirectional=True, proj_size=40), input
        yield f"GRU {name}", fused_rnn.GRU(inputs, hidden), input
    yield "MaskedConv2d", fused_rnn.MaskedConv2d(24, 48, 3, "B"), torch.randn(2, 24, 20, 20)
    yield "MaskedConv2d groups", fused_rnn.MaskedConv2d(3, 48, 5, "A", 3), torch.randn(2, 3, 20, 20)


def call(module: nn.Module, input: Tensor, training: bool) -> dict[str, Tensor]:
    """Return the output of a layer, and in training the gradients of its input and parameters."""
    if not training:
        with torch.no_grad():
            output = module(input)
        return {"output": output[0] if isinstance(output, tuple) else output}
    input = input.detach().requires_grad_()
    output = module(input)
    output = output[0] if isinstance(output, tuple) else output
    gradients = torch.autograd.grad(output, [input, *module.parameters()], torch.ones_like(output))
    return {"output": output.detach(), **{str(i): gradient for i, gradient in enumerate(gradients)}}


def used_memory() -> int:
    """Return the size of the address space of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def with_memory(size: int, module: nn.Module, input: Tensor, training: bool) -> dict[str, Tensor] | None:
    """Call a layer, which may map so many bytes more than are mapped now; return None if that raised a RuntimeError."""
    resource.setrlimit(resource.RLIMIT_AS, (used_memory() + size, resource.RLIM_INFINITY))
    try:
        return call(module, input, training)
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def failures(module: nn.Module, input: Tensor, training: bool) -> int:
    """Call a layer with ever less memory, and return how often it failed; compare what it returns when it does not."""
    expected = call(module, input, training)
    ctypes.CDLL(None).malloc_trim(KEPT)
    size, failed = MOST, 0
    while size > SMALL:
        result = with_memory(size, module, input, training)
        failed += result is None
        if result is not None:
            assert_identical(result, expected)
        size = int(size * FACTOR)
    assert_identical(call(module, input, training), expected)
    return failed


def main() -> None:
    """Compute each layer in each dtype, forward and backward."""
    torch.set_num_threads(2)
    _C.set_processors(2)
    torch.manual_seed(0)
    for name, module, input in layers():
        for (dtype_name, dtype), training in product(DTYPES.items(), (False, True)):
            failed = failures(module.to(dtype), input.to(dtype), training)
            print(f"{name}, {dtype_name}, {'training' if training else 'inference'}: {failed}", flush=True)


if __name__ == "__main__":
    assert all(os.environ.get(name) == value for name, value in ENVIRONMENT.items()), "glibc reads these as it starts"
    main()
