"""The plan of a layer on the CPU, which depends only on its sizes; docs/notes/recurrent-cpu.md has the measurements."""

from itertools import product
from typing import Any

import pytest
from layer_sizes import PLANS

from fused_rnn import _C

# The number of float32 values in a vector, and the rows of the largest tile.
AVX512 = {"lanes": 16, "max_rows": 6}
AVX2 = {"lanes": 8, "max_rows": 3}
LAYER: dict[str, Any] = {
    "cell": "lstm", "time": 100, "batch": 32, "input_size": 256, "hidden_size": 256, "directions": 1, "threads": 2,
}  # fmt: skip


# The registers of every instruction set, for float32 and float64.
REGISTERS = [{"lanes": lanes, "max_rows": 6 if lanes == 16 else 3} for lanes in (16, 8, 4, 2)]
REGISTERS += [{"lanes": 8, "max_rows": 6}]


def plan(**sizes: Any) -> Any:
    return _C.cpu_plan(**{**LAYER, **AVX512, **sizes})


def ways(**sizes: Any) -> tuple[str, bool, str]:
    chosen = plan(**sizes)
    return chosen["weights"], chosen["input_first"], chosen["backward_weights"]


@pytest.mark.parametrize("cell", _C.cells())
def test_a_long_sequence_is_worth_packing(cell: str) -> None:
    chosen = plan(cell=cell)
    assert (chosen["weights"], chosen["input_first"]) == ("packed before", False)
    assert (chosen["backward_weights"], chosen["threads"], chosen["backward_threads"]) == ("packed before", 2, 2)


@pytest.mark.parametrize(
    ("registers", "batch", "weights"),
    [
        (AVX512, 1, "in place"), (AVX512, 12, "in place"), (AVX512, 13, "transposed"),
        (AVX2, 6, "in place"), (AVX2, 7, "transposed"),
    ],
)  # fmt: skip
def test_one_step_reads_weights_in_place_for_few_rows(registers: dict[str, int], batch: int, weights: str) -> None:
    assert plan(time=1, batch=batch, **registers)["weights"] == weights


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        # Batches below 4 count as 4; the longer the sums, the more rows may read weights in place.
        ({"time": 4, "batch": 1}, "in place"), ({"time": 5, "batch": 1}, "packed before"),
        ({"time": 4, "batch": 4}, "in place"), ({"time": 2, "batch": 9}, "packed before"),
        ({"time": 2, "batch": 4, "input_size": 128, "hidden_size": 128}, "in place"),
        ({"time": 2, "batch": 5, "input_size": 128, "hidden_size": 128}, "packed before"),
        ({"time": 2, "batch": 2, "input_size": 20, "hidden_size": 30}, "packed before"),
    ],
)  # fmt: skip
def test_few_rows_in_several_steps_are_read_in_place(sizes: dict[str, int], weights: str) -> None:
    assert plan(**{"input_size": 300, "hidden_size": 300, **sizes})["weights"] == weights


def test_the_product_with_the_input_comes_first_for_few_sequences() -> None:
    assert [plan(batch=batch)["input_first"] for batch in (1, 3, 4)] == [True, True, False]
    assert not plan(time=1, batch=1)["input_first"]


def test_few_units_are_shared_out_in_vectors() -> None:
    assert [plan(hidden_size=size)["block_units"] for size in (255, 256)] == [16, 32]
    assert plan(hidden_size=64, threads=1)["block_units"] == 32
    assert plan(hidden_size=64, **AVX2)["block_units"] == 8


def test_a_step_of_little_work_has_one_thread() -> None:
    small = plan(batch=1, input_size=16, hidden_size=16)
    assert (small["threads"], small["backward_threads"]) == (1, 1)
    assert plan(cell="rnn_tanh", batch=1, input_size=64, hidden_size=64)["threads"] == 1
    assert plan(cell="lstm", batch=1, input_size=64, hidden_size=64)["threads"] == 2


def test_a_second_thread_is_started_only_for_enough_work_in_all_steps() -> None:
    threads = [plan(time=1, batch=1, input_size=size, hidden_size=size)["threads"] for size in (128, 256)]
    assert threads == [1, 2]
    assert plan(time=3, batch=1, input_size=128, hidden_size=128)["threads"] == 2


@pytest.mark.parametrize(
    ("registers", "time", "batch", "weights"),
    [
        (AVX512, 8, 12, "in place"), (AVX512, 8, 13, "packed before"), (AVX512, 9, 1, "packed before"),
        (AVX2, 8, 6, "in place"), (AVX2, 4, 13, "packed before"),
    ],
)  # fmt: skip
def test_backward_packs_from_nine_tiles_on(registers: dict[str, int], time: int, batch: int, weights: str) -> None:
    assert plan(time=time, batch=batch, **registers)["backward_weights"] == weights


@pytest.mark.parametrize("registers", REGISTERS, ids=str)
@pytest.mark.parametrize("cell", _C.cells())
@pytest.mark.parametrize("way", PLANS, ids=str)
def test_every_plan_has_a_layer_that_is_compared_with_torch(
    way: tuple[str, bool, str], cell: str, registers: dict[str, int]
) -> None:
    time, batch, input_size, hidden_size = PLANS[way]
    for directions, threads in product((1, 2), (1, 4)):
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "directions": directions, "threads": threads}
        assert ways(cell=cell, time=time, batch=batch, **sizes, **registers) == way


@pytest.mark.parametrize("registers", REGISTERS, ids=str)
def test_there_are_no_other_plans(registers: dict[str, int]) -> None:
    found = {
        ways(time=time, batch=batch, input_size=size, hidden_size=size, **registers)
        for time, batch, size in product((1, 2, 3, 4, 5, 8, 9, 16, 17, 100), range(1, 200), (1, 40, 100, 300))
    }
    assert found == PLANS.keys()
