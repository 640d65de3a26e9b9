"""The structs of csrc/params and of csrc/cuda/persistent/plan.h, and calls of the kernels with them."""

import ctypes
from ctypes import c_bool, c_char_p, c_int, c_int32, c_int64, c_void_p
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fused_rnn import _C

ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
CELLS = {name: index for index, name in enumerate(_C.cells())}
"""The values of the enumerations Element and cells::Kind."""


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Steps(ctypes.Structure):
    _fields_ = [*_fields(c_int64, "time batch rows"), *_fields(c_void_p, "lengths batch_sizes first_rows")]


class Resets(ctypes.Structure):
    _fields_ = [("begins", c_void_p), *_fields(c_int64, "rows directions batch"), ("every_step", c_bool)]


RESETS = [("resets", Resets), *_fields(c_void_p, "reset_h reset_c")]
GRAD_RESETS = _fields(c_void_p, "grad_reset_h grad_reset_c")


class Plan(ctypes.Structure):
    """How a persistent kernel shares out a layer."""

    NUMBERS = (
        "blocks groups units sequences row_tiles batch_tiles chunks_in_registers split partials directions "
        "first_direction"
    )
    _fields_ = [("cluster", c_bool), *_fields(c_int32, NUMBERS)]

    def __str__(self) -> str:
        numbers = ",".join(f"{name}={getattr(self, name)}" for name in self.NUMBERS.split())
        path = "warpgroup" if self.split else "cluster" if self.cluster else "grid"
        return f"{path},{numbers}"


_LAYER = [("steps", Steps), ("plan", Plan), *_fields(c_int64, "hidden_size directions"), ("full_precision", c_bool)]


class Forward(ctypes.Structure):
    _fields_ = [
        *_LAYER,
        *_fields(c_void_p * 2, "weight_hh bias_ih bias_hh"),
        *_fields(c_void_p, "h0 c0 output h_n c_n gates cells"),
        ("save_for_backward", c_bool),
        *RESETS,
    ]


class Backward(ctypes.Structure):
    _fields_ = [
        *_LAYER,
        ("weight_hh", c_void_p * 2),
        *_fields(
            c_void_p, "h0 c0 output gates cells grad_output grad_cells grad_h_n grad_c_n grad_h0 grad_c0 grad_gates"
        ),
        *RESETS,
        *GRAD_RESETS,
    ]


class PointwiseForward(ctypes.Structure):
    _fields_ = [
        ("steps", Steps),
        *_fields(c_int64, "t sequences hidden_size directions direction"),
        *_fields(c_void_p, "sums bias_ih bias_hh before hidden cell c0 c_n output gates cells"),
        ("save_for_backward", c_bool),
        ("next", c_int64),
        *RESETS,
    ]


class PointwiseBackward(ctypes.Structure):
    _fields_ = [
        ("steps", Steps),
        *_fields(c_int64, "t before sequences hidden_size directions direction"),
        *_fields(
            c_void_p,
            "h0 c0 output gates cells grad_output grad_cells grad_projected",
        ),
        ("first", c_bool),
        *_fields(
            c_void_p, "grad_h_n grad_c_n grad_h_direct grad_h_recurrent grad_cell grad_c0 grad_gates grad_recurrent"
        ),
        ("after", c_int64),
        *RESETS,
        *GRAD_RESETS,
    ]


class Problem(ctypes.Structure):
    """What a plan is made for."""

    _fields_ = [
        *_fields(c_int64, "batch hidden_size directions"),
        *_fields(c_int, "gates element_bytes"),
        *_fields(c_bool, "allow_tf32 backward projected one_step"),
    ]


class Device(ctypes.Structure):
    """What a GPU has. Clusters have at most ``cluster`` blocks, and as many run at once as find multiprocessors."""

    _fields_ = [
        ("multiprocessors", c_int), ("shared_bytes", c_int64), ("clusters", c_int * 17), ("most_blocks", c_int),
        ("hopper", c_bool),
    ]  # fmt: skip

    def __init__(
        self,
        multiprocessors: int = 0,
        shared_bytes: int = 0,
        cluster: int = 1,
        most_blocks: int = 0,
        hopper: bool = False,
    ) -> None:
        at_once = [multiprocessors // blocks if 1 <= blocks <= cluster and cluster > 1 else 0 for blocks in range(17)]
        super().__init__(multiprocessors, shared_bytes, (c_int * 17)(*at_once), most_blocks, hopper)


H200 = Device(132, 227 * 1024, 16, hopper=True)
# What the driver of one says: _C.cuda_device(0)["clusters"].
H200.clusters[:] = [0, 132, 66, 39, 30, 22, 17, 15, 15, 9, 7, 7, 7, 7, 7, 7, 7]


class PlanOverride(ctypes.Structure):
    _fields_ = _fields(c_int, "path blocks groups batch_tiles chunks_in_registers split")

    def __init__(
        self,
        path: int = 0,
        blocks: int = 0,
        groups: int = 0,
        batch_tiles: int = 0,
        chunks_in_registers: int = -1,
        split: int = 0,
    ) -> None:
        super().__init__(path, blocks, groups, batch_tiles, chunks_in_registers, split)


class Tiles(NamedTuple):
    """What a kernel is built for, besides the cell, the type, the direction and the path."""

    row_tiles: int
    batch_tiles: int
    chunks_in_registers: int


class Kernels:
    """The kernels of csrc/cuda/ in a library that :func:`cuda_on_host.build.build` made."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        structs = (Forward, Backward, PointwiseForward, PointwiseBackward, Plan, Problem, Device, PlanOverride)
        sizes = (c_int64 * len(structs))()
        self._library.struct_sizes(sizes)
        assert list(sizes) == [ctypes.sizeof(struct) for struct in structs], "the structs here are not those of C++"

    def choose_schedule(self, seed: int) -> None:
        """Let other threads be ahead of others in the launches that follow."""
        self._library.choose_schedule(seed)

    def run(self, function: str, cell: str, dtype: torch.dtype, params: ctypes.Structure) -> None:
        """Run a kernel: persistent_forward, persistent_backward, pointwise_forward or pointwise_backward.

        Raises:
            RuntimeError: a thread waits for ever, or the launch is refused.
        """
        launch = self._library[function]
        launch.restype = c_char_p
        error = launch(CELLS[cell], ELEMENTS[dtype], ctypes.byref(params))
        if error is not None:
            raise RuntimeError(error.decode())

    def choose_plan(self, problem: Problem, device: Device, plan_override: PlanOverride) -> Plan:
        """Return the plan that csrc/cuda/persistent/plan.cu chooses."""
        plan = Plan()
        self._library.plan_for(
            ctypes.byref(problem), ctypes.byref(device), ctypes.byref(plan_override), ctypes.byref(plan)
        )
        return plan

    def padded_size(self, problem: Problem, time: int, plan_override: PlanOverride) -> int:
        """Return the hidden size that a layer of so many steps is padded to."""
        self._library.padded_size_of.restype = c_int64
        return int(self._library.padded_size_of(ctypes.byref(problem), c_int64(time), ctypes.byref(plan_override)))

    def estimate(self, plan: Plan, problem: Problem, device: Device) -> float:
        """Return the microseconds that a step should take."""
        self._library.estimate_of.restype = ctypes.c_double
        return float(self._library.estimate_of(ctypes.byref(plan), ctypes.byref(problem), ctypes.byref(device)))

    def device(self, index: int, gpu: tuple[int, ...] | None = None) -> Device:
        """Return what csrc/cuda/kit/device_info.cu says of a GPU, after pretending that it is ``gpu``."""
        if gpu is not None:
            self._library.pretend_gpu(index, *gpu)
        device = Device()
        self._library.device_of(index, ctypes.byref(device))
        return device

    def times_asked(self, index: int) -> int:
        """Return how often a GPU was asked for room since it is pretended to be what it is."""
        return int(self._library.times_asked(index))

    def current_gpu(self) -> int:
        """Return the current device."""
        return int(self._library.current_gpu())

    def prepare(self, kernel: int, gpu: int, large_clusters: bool) -> str | None:
        """Call prepare_kernel of csrc/cuda/kit/launch.cu for a kernel at an address, and return its error."""
        self._library.choose_gpu(gpu)
        self._library.prepare.restype = c_char_p
        error: bytes | None = self._library.prepare(c_void_p(kernel), c_bool(large_clusters))
        return None if error is None else error.decode()

    def granted(self) -> tuple[int, int, int]:
        """Return the shared memory and the blocks of a cluster that are granted, and how often either was set."""
        numbers = [c_int() for _ in range(3)]
        self._library.granted(*map(ctypes.byref, numbers))
        shared, blocks, times = (number.value for number in numbers)
        return shared, blocks, times

    def why_stepwise(self, problem: Problem, plan_override: PlanOverride) -> str:
        """Return why there is no plan."""
        self._library.why_stepwise_of.restype = c_char_p
        return self._library.why_stepwise_of(ctypes.byref(problem), ctypes.byref(plan_override)).decode()

    def shared_bytes(self, plan: Plan, problem: Problem) -> int:
        """Return how much shared memory the blocks of a plan need."""
        self._library.shared_bytes_of.restype = c_int64
        return self._library.shared_bytes_of(ctypes.byref(plan), ctypes.byref(problem))

    @cache  # noqa: B019  (there is one for all tests)
    def built(self, gates: int, backward: bool, element_bytes: int, cluster: bool) -> list[Tiles]:
        """Return for which plans there is a kernel."""
        self._library.is_built.restype = c_bool
        every = product(range(1, 17), range(1, 9), range(9))
        kind = (gates, c_bool(backward), element_bytes, c_bool(cluster))
        return [Tiles(*tiles) for tiles in every if self._library.is_built(*kind, *tiles)]
