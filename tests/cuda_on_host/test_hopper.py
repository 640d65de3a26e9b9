"""The CPU's versions of Hopper's instructions: that they do what PTX says, and that they see a kernel's mistakes."""

import ctypes
from ctypes import c_bool, c_char_p, c_int, c_int32, c_int64, c_void_p
from typing import Any

import pytest
import torch
from comparing import assert_accurate
from torch import Tensor

from cuda_on_host.build import build

SCHEDULES = range(6)


class Described(ctypes.Structure):
    """The struct Tensor of hopper_kernels.cpp."""

    _fields_ = [
        ("data", c_void_p), ("sizes", c_int64 * 5), ("strides", c_int64 * 4), ("box", c_int32 * 5), ("rank", c_int32),
        ("bfloat16", c_bool),
    ]  # fmt: skip


def describe(tensor: Tensor, *box: int) -> Described:
    """Describe a tensor with its dense dimension last, and a box of it in the order of a tensor map."""
    sizes, strides = tensor.shape[::-1], [stride * 2 for stride in tensor.stride()[-2::-1]]
    return Described(
        tensor.data_ptr(), (c_int64 * 5)(*sizes), (c_int64 * 4)(*strides), (c_int32 * 5)(*box), tensor.ndim,
        tensor.dtype == torch.bfloat16,
    )  # fmt: skip


class Hopper:
    """The kernels of hopper_kernels.cpp."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(build()))

    def choose_schedule(self, seed: int) -> None:
        self._library.choose_schedule(seed)

    def run(self, name: str, *arguments: Any) -> None:
        """Run a kernel; what is wrong is a RuntimeError."""
        function = self._library[f"hopper_{name}"]
        function.restype = c_char_p
        error = function(*(ctypes.byref(each) if isinstance(each, ctypes.Structure) else each for each in arguments))
        if error is not None:
            raise RuntimeError(error.decode())


@pytest.fixture(scope="module")
def hopper() -> Hopper:
    return Hopper()


def integers(*values: int) -> Any:
    return ctypes.byref((c_int * len(values))(*values))


def pointer(tensor: Tensor) -> c_void_p:
    assert tensor.is_contiguous()
    return c_void_p(tensor.data_ptr())


def box_of(tensor: Tensor, box: tuple[int, ...], at: tuple[int, ...]) -> Tensor:
    """Return a box of a tensor as rows of 64 values, zeros outside the tensor; `box` and `at` as in a tensor map."""
    for dim, (size, start) in enumerate(zip(box[::-1], at[::-1], strict=True)):
        places = torch.arange(start, start + size)
        inside = (places >= 0) & (places < tensor.shape[dim])
        shape = [-1 if d == dim else 1 for d in range(tensor.ndim)]
        tensor = tensor.index_select(dim, places.where(inside, 0)) * inside.view(shape).to(tensor.dtype)
    return tensor.reshape(-1, 64)


BOXES = [
    ((72, 9), (64, 8), (0, 0)),
    ((72, 9), (64, 5), (8, 7)),
    ((72, 9), (64, 5), (-16, -2)),
    ((40, 5, 3), (64, 4, 2), (0, -1, 2)),
    ((128, 7, 6, 3), (64, 8, 4, 2), (64, -2, 3, 1)),
    ((64, 7, 6, 3), (64, 3, 3, 1), (0, 9, 0, 0)),
    ((8, 4, 4, 2), (64, 4, 4, 2), (8, 0, 1, -1)),
]


def copy(
    hopper: Hopper, case: int, shift: int, dtype: torch.dtype, extra_bytes: int = 0, waits: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what was in shared memory and in the other tensor, and what should have been."""
    sizes, box, at = BOXES[case]
    tensor = torch.randn(sizes[::-1]).to(dtype)
    rows = box[1:] + (1,) * (4 - len(box))
    other, to_at = torch.full((2, 4, 7, 72), 7, dtype=dtype), (8, 1, -1, 0)
    raw = torch.zeros(box_of(tensor, box, at).shape, dtype=dtype)
    hopper.run(
        "copy", describe(tensor, *box), describe(other, 64, *rows), integers(*at, *[0] * (4 - len(at))),
        integers(*to_at), shift, extra_bytes, waits, pointer(raw),
    )  # fmt: skip
    expected = box_of(tensor, box, at)
    copied = torch.full_like(other, 7)
    for index, value in zip(torch.cartesian_prod(*map(torch.arange, rows[::-1])), expected, strict=True):
        z, y, x = (index + torch.tensor(to_at[:0:-1])).tolist()
        if 0 <= z < 2 and 0 <= y < 4 and 0 <= x < 7:
            copied[z, y, x, 8:] = value
    # Row i lies in the row shift + i of 128 bytes, whose chunks are permuted.
    row = torch.arange(len(expected))[:, None]
    chunk = torch.arange(8) ^ (row + shift) % 8
    return raw.view(-1, 8, 8)[row, chunk].view(-1, 64), other, expected, copied


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", range(len(BOXES)))
def test_a_box_is_copied(hopper: Hopper, case: int, dtype: torch.dtype) -> None:
    torch.manual_seed(case)
    for shift in SCHEDULES:
        hopper.choose_schedule(shift)
        raw, other, expected, copied = copy(hopper, case, shift, dtype)
        assert torch.equal(raw, expected)
        assert torch.equal(other, copied)


def test_a_box_that_begins_between_multiples_of_16_bytes_is_refused(hopper: Hopper) -> None:
    tensor = torch.randn(9, 72).half()
    with pytest.raises(RuntimeError, match="does not begin at a multiple of 16 bytes"):
        hopper.run(
            "copy", describe(tensor, 64, 8), describe(tensor, 64, 8), integers(4, 0, 0, 0), integers(0, 0, 0, 0),
            0, 0, True, pointer(torch.zeros(64 * 8).half()),
        )  # fmt: skip


def test_a_copy_that_nobody_waits_for_is_seen(hopper: Hopper) -> None:
    def is_right(schedule: int) -> bool:
        hopper.choose_schedule(schedule)
        raw, _, expected, _ = copy(hopper, 0, 0, torch.float16, waits=False)
        return torch.equal(raw, expected)

    assert not all(is_right(schedule) for schedule in SCHEDULES)


@pytest.mark.parametrize(
    ("extra_bytes", "message"),
    [(-128, "more bytes were copied"), (128, "64 are at a barrier_wait for 0 more threads and 128 bytes")],
)
def test_a_wrong_number_of_bytes_is_seen(hopper: Hopper, extra_bytes: int, message: str) -> None:
    for schedule in SCHEDULES:
        hopper.choose_schedule(schedule)
        with pytest.raises(RuntimeError, match=message):
            copy(hopper, 0, 0, torch.float16, extra_bytes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"sizes": (64, 1 << 32), "box": (64, 256)}, None),
        ({"data": 8}, "address is not a multiple of 16"),
        ({"data": 1 << 20 | 8}, "address is not a multiple of 16"),
        ({"sizes": (64, 0)}, "size of the tensor is not in"),
        ({"sizes": ((1 << 32) + 1, 8)}, "size of the tensor is not in"),
        ({"strides": (120,)}, "stride of the tensor is not a multiple of 16"),
        ({"strides": (1 << 40,)}, "stride of the tensor is not in"),
        ({"strides": (-128,)}, "stride of the tensor is not in"),
        ({"box": (64, 0)}, "size of the box is not in 1 to 256"),
        ({"box": (64, 257)}, "size of the box is not in 1 to 256"),
        ({"box": (32, 8)}, "a row of the box does not have 128 bytes"),
        ({"rank": 0}, "1 to 5 dimensions"),
        ({"rank": 6}, "1 to 5 dimensions"),
    ],
)
def test_what_a_tensor_map_describes(hopper: Hopper, changes: dict[str, Any], message: str | None) -> None:
    described = Described(0, (64, 8), (128,), (64, 8), 2, True)
    for name, value in changes.items():
        kind = type(getattr(described, name))
        setattr(described, name, kind(*value) if isinstance(value, tuple) else value)
    if message is None:
        hopper.run("describe", described)
    else:
        with pytest.raises(RuntimeError, match=message):
            hopper.run("describe", described)


def transpose(hopper: Hopper, mistake: int) -> bool:
    """Whether all values of two warps got to their place, of two passes in the same memory."""
    values = torch.randn(2, 2, 8, 64).half()
    other = torch.zeros(2, 2, 8, 64).half()
    hopper.run("transpose", describe(other, 64, 8, 1, 1), pointer(values), mistake)
    return torch.equal(other, values)


def test_a_transposed_store(hopper: Hopper) -> None:
    for schedule in SCHEDULES:
        hopper.choose_schedule(schedule)
        assert transpose(hopper, 0)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (1, "did not call shared_written"),
        (3, "ends before its boxes have been read"),
        (5, "ends before its boxes have been read"),
    ],
)
def test_a_missing_wait_of_a_store_is_named(hopper: Hopper, mistake: int, message: str) -> None:
    for schedule in SCHEDULES:
        hopper.choose_schedule(schedule)
        with pytest.raises(RuntimeError, match=message):
            transpose(hopper, mistake)


@pytest.mark.parametrize("mistake", [2, 4], ids=["no barrier", "too early a second store"])
def test_a_store_out_of_order_is_seen(hopper: Hopper, mistake: int) -> None:
    def is_right(schedule: int) -> bool:
        hopper.choose_schedule(schedule)
        try:
            return transpose(hopper, mistake)
        except RuntimeError:
            return False

    assert not all(is_right(schedule) for schedule in SCHEDULES)


def multiply(
    hopper: Hopper,
    columns: int,
    left_depth_first: bool = True,
    right_depth_first: bool = True,
    shifts: tuple[int, int] = (0, 0),
    groups: tuple[int, int] = (8, 8),
    mistake: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a product, what it should be, and the same by PyTorch in float32."""
    dtype = torch.float16 if columns in (8, 128) else torch.bfloat16
    steps = 3

    def operand(depth_first: bool, rows: int, shift: int, group: int) -> tuple[Described, Tensor, Tensor]:
        """Describe an operand; row r of those in shared memory is row r % 8 of group r // 8."""
        count = rows if depth_first else 16 * steps
        places = shift + torch.arange(count) // 8 * group + torch.arange(count) % 8
        tensor = torch.randn(int(places.max()) + 1, 64 if depth_first else -(-rows // 64) * 64).to(dtype)
        taken = tensor[places].double()
        matrix = taken[:, : 16 * steps] if depth_first else taken[:, :rows].T
        return describe(tensor, 64, len(tensor)), tensor, matrix

    left, left_tensor, left_matrix = operand(left_depth_first, 64, shifts[0], groups[0])
    right, right_tensor, right_matrix = operand(right_depth_first, columns, shifts[1], groups[1])
    sums = torch.zeros(64, columns)
    hopper.run(
        "multiply", left, right, left_depth_first, right_depth_first, columns, integers(*shifts), integers(*groups),
        steps, mistake, pointer(sums),
    )  # fmt: skip
    del left_tensor, right_tensor  # had to live until here
    return sums, left_matrix @ right_matrix.T, left_matrix.float() @ right_matrix.float().T


@pytest.mark.parametrize("columns", [8, 112, 128, 256])
@pytest.mark.parametrize("right_depth_first", [True, False])
@pytest.mark.parametrize("left_depth_first", [True, False])
def test_products(hopper: Hopper, left_depth_first: bool, right_depth_first: bool, columns: int) -> None:
    torch.manual_seed(columns)
    ways = [((0, 0), (8, 8)), ((3, 5), (8, 8)), ((1, 0), (12, 9)), ((0, 7), (9, 0))]
    for schedule, (shifts, groups) in enumerate(ways):
        if columns == 256 and right_depth_first:
            groups = (groups[0], min(groups[1], 7))  # the most rows of a box
            shifts = (shifts[0], min(shifts[1], 3))
        hopper.choose_schedule(schedule)
        assert_accurate(*multiply(hopper, columns, left_depth_first, right_depth_first, shifts, groups))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (1, "matrices_begin was not called"),
        (2, "threads of a warpgroup multiply different matrices"),
        (3, "sums were written before matrices_done"),
        (5, "ends before its products are done"),
        (6, "ends before its products are done"),
    ],
)
def test_a_mistake_in_products_is_named(hopper: Hopper, mistake: int, message: str) -> None:
    for schedule in SCHEDULES:
        hopper.choose_schedule(schedule)
        with pytest.raises(RuntimeError, match=message):
            multiply(hopper, 8, mistake=mistake)


def test_an_operand_that_is_replaced_too_early_is_seen(hopper: Hopper) -> None:
    def is_right(schedule: int) -> bool:
        hopper.choose_schedule(schedule)
        return not multiply(hopper, 8, mistake=4)[0].isnan().any()

    assert not all(is_right(schedule) for schedule in SCHEDULES)


def test_sums_that_nobody_waits_for_are_nan(hopper: Hopper) -> None:
    for schedule in SCHEDULES:
        hopper.choose_schedule(schedule)
        sums = torch.zeros(64, 8)
        tensor = torch.randn(64, 64).half()
        with pytest.raises(RuntimeError, match="ends before its products are done"):
            hopper.run(
                "multiply", describe(tensor, 64, 64), describe(tensor, 64, 64), True, True, 8, integers(0, 0),
                integers(8, 8), 3, 6, pointer(sums),
            )  # fmt: skip
        assert sums.isnan().any()


def test_a_ring_of_buffers(hopper: Hopper) -> None:
    turns = 50
    for schedule in SCHEDULES:
        hopper.choose_schedule(schedule)
        sums = torch.zeros(128, dtype=torch.int64)
        hopper.run("ring", turns, pointer(sums))
        assert sums.tolist() == [sum(turn * turn for turn in range(turns))] * 128


MISTAKES = {
    0: "a barrier was not prepared",
    1: "a barrier is prepared twice",
    2: "barriers_ready was not called",
    3: "more threads arrive at a barrier than it was prepared for",
    4: "a barrier was overwritten",
    5: "cannot expect so many bytes",
    6: "must begin at a multiple of 128 bytes",
    7: "the tensor map has another number of dimensions",
    8: "the block's shared memory does not reach so far",
    9: "more bytes were copied than a barrier expected|block 0 ends before work that it started",
    10: "there is no barrier of this number",
    11: "a barrier is for whole warps",
    12: "meets threads that wait at another barrier|waits for threads that do not come",
    13: "meets threads that wait at another barrier",
    14: "128 are at a more_registers",
    15: "the thread has fewer already",
    16: "a barrier is not aligned",
    17: "a parity is 0 or 1",
    18: "cannot be for so many threads",
}


@pytest.mark.parametrize("which", MISTAKES)
def test_a_mistake_is_named(hopper: Hopper, which: int) -> None:
    tensor = torch.zeros(8, 64, dtype=torch.float16)
    for schedule in SCHEDULES:
        hopper.choose_schedule(schedule)
        with pytest.raises(RuntimeError, match=MISTAKES[which]):
            hopper.run("mistake", describe(tensor, 64, 8), which)
