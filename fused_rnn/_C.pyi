# ruff: noqa: N999  (the name of the extension)
from collections.abc import Sequence
from typing import Any, TypedDict

from torch import Tensor

class BuildInfo(TypedDict):
    compiler: str
    cpu_capabilities: list[str]
    cpu_capability: str
    multiplies_pairs: bool
    cuda_version: str | None
    cuda_archs: str
    cuda_devices: int

# See csrc/params/cuda_steps.h.
MOST_UNITS_IN_FLOAT32: int

def build_info() -> BuildInfo: ...

class CellInfo(TypedDict):
    gates: int
    sums: int
    states: int
    hidden_sums: tuple[int, ...]
    reads_hidden: bool
    may_project: bool

def cells() -> dict[str, CellInfo]: ...

# Runs a recurrent network if the call is plain, and returns the output and the final states; else returns None. See
# csrc/ops/plain_call.h.
def plain_recurrent(
    cell: str,
    input: Tensor,
    states: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    layers: int,
    directions: int,
    batch_first: bool,
) -> tuple[Tensor, ...] | None: ...
def plain_frozen(
    input: Tensor, states: Sequence[Tensor] | None, weights: Sequence[Tensor], packed: Tensor, batch_first: bool
) -> tuple[Tensor, ...] | None: ...

# Returns the name of the first weight of a frozen module that is no longer what was packed, and how it changed.
def find_change(
    watched: list[Any], parameters: dict[str, Any], attributes: dict[str, Any], listed: list[Tensor]
) -> tuple[str, str] | None: ...
def set_debug(enabled: bool) -> None: ...

# The most threads that a kernel on the CPU may use: not more than there are processors. For tests, set_processors says
# how many there are; 0 stands for those of the machine.
def most_threads() -> int: ...
def set_processors(processors: int) -> None: ...

# The plan of a layer on the CPU, for an instruction set with `lanes` values in a vector and `max_rows` rows in a tile;
# see csrc/cpu/recurrent/plan.h.
class CpuPlan(TypedDict):
    weights: str
    input_first: bool
    block_units: int
    threads: int
    backward_weights: str
    backward_threads: int

def cpu_plan(
    *,
    cell: str,
    time: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    directions: int,
    threads: int,
    lanes: int,
    max_rows: int,
) -> CpuPlan: ...

# The functions below exist only in builds with CUDA. set_plan_override restricts which plans of the persistent
# kernels may be chosen from now on, cuda_plan returns the plan of one pass over a layer on a GPU,
# cuda_masked_conv2d_plan how a GPU computes a masked convolution of the given shapes, cuda_device what the GPU has for
# plans, and finds_cublas tells whether torch's cuBLAS was found. The limit on multiprocessors is 0 for none.
# set_convolution_path restricts masked convolutions to the kernels for single warps ("mma"), or to PyTorch's own
# convolutions ("rectangles"), from now on.
def set_plan_override(
    path: str = "any",
    blocks: int = 0,
    groups: int = 0,
    batch_tiles: int = 0,
    chunks_in_registers: int = -1,
    split: int = 0,
) -> None: ...
def cuda_plan(
    cell: str,
    element_bytes: int,
    batch: int,
    hidden_size: int,
    directions: int,
    backward: bool,
    projected: bool,
    time: int,
    device: int = 0,
) -> dict[str, str | int | float]: ...
def cuda_masked_conv2d_plan(
    input: Sequence[int],
    weight: Sequence[int],
    mask_type: str,
    data_channels: int,
    dilation_height: int,
    dilation_width: int,
    element_bytes: int,
    device: int = 0,
) -> dict[str, dict[str, Any]]: ...
def set_convolution_path(path: str) -> None: ...
def cuda_device(index: int = 0) -> dict[str, int | list[int]]: ...
def multiprocessor_limit() -> int: ...
def set_multiprocessor_limit(limit: int) -> None: ...
def finds_cublas() -> bool: ...
