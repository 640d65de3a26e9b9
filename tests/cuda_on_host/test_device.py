"""What csrc/cuda/kit/device_info.cu makes of what the CUDA runtime says, for which runtime.cpp stands in."""

import pytest

from cuda_on_host.structs import Device, Kernels, PlanOverride, Problem

SHARED = 227 * 1024
# Multiprocessors, shared memory of a block, major version, version of the PTX that was loaded, blocks of a cluster that
# find room; and the blocks of a cluster that may be planned for.
GPUS = {
    "Hopper": ((132, SHARED, 9, 90, 16), 16),
    "Hopper, built for sm_80 alone": ((132, SHARED, 9, 80, 16), 1),
    "a slice of a Hopper": ((16, SHARED, 9, 90, 14), 14),
    "one multiprocessor": ((1, SHARED, 9, 90, 1), 1),
    "Hopper whose driver answers with an error": ((132, SHARED, 9, 90, 0), 1),
    "a later GPU, by PTX": ((148, SHARED, 10, 90, 16), 16),
    "a later GPU with clusters of 8": ((170, 99 * 1024, 12, 90, 8), 8),
    "Ampere": ((108, 163 * 1024, 8, 80, 0), 1),
}


@pytest.mark.parametrize("name", GPUS)
def test_clusters_are_what_the_gpu_and_the_build_have(kernels: Kernels, name: str) -> None:
    gpu, cluster = GPUS[name]
    index = list(GPUS).index(name)
    device = kernels.device(index, gpu)
    assert (device.multiprocessors, device.shared_bytes, device.cluster) == (*gpu[:2], cluster)
    asked = kernels.times_asked(index)
    assert asked <= 16
    # The driver is not asked again, and the caller's device is as before.
    assert kernels.device(index, (1, 1, 9, 90, 4)).cluster == cluster
    assert kernels.times_asked(index) == 0
    assert kernels.current_gpu() == 0


def test_no_such_gpu(kernels: Kernels) -> None:
    for index in (-1, 16, 1000):
        device = kernels.device(index)
        assert (device.multiprocessors, device.shared_bytes, device.cluster) == (0, 0, 1)


def test_too_large_a_cluster_falls_back(kernels: Kernels) -> None:
    # Of 32 units a block, hidden size 256 takes clusters of 8.
    problem = Problem(64, 256, 1, 4, 2, False, False)
    whole, part, none = (kernels.choose_plan(problem, Device(132, SHARED, most), PlanOverride()) for most in (16, 7, 1))
    assert [plan.cluster for plan in (whole, part, none)] == [True, False, False]
    assert min(plan.blocks for plan in (whole, part, none)) > 0
