# ruff: noqa: N999  (the name of the extension)
from collections.abc import Sequence
from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cpu_capabilities: list[str]
    cpu_capability: str
    multiplies_pairs: bool
    cuda_version: str | None
    cuda_archs: str
    cuda_devices: int

def build_info() -> BuildInfo: ...

class CellInfo(TypedDict):
    gates: int
    sums: int
    states: int
    hidden_sums: tuple[int, ...]
    reads_hidden: bool
    may_project: bool

def cells() -> dict[str, CellInfo]: ...

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
# cuda_masked_conv2d_plan how a GPU computes a masked convolution of the given shapes, and finds_cublas tells whether
# torch's cuBLAS was found.
def set_plan_override(
    path: str = "any", blocks: int = 0, groups: int = 0, batch_tiles: int = 0, chunks_in_registers: int = -1
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
) -> dict[str, str | int]: ...
def finds_cublas() -> bool: ...
