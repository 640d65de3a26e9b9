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
    assert (device.multiprocessors, device.shared_bytes, device.most_blocks) == (*gpu[:2], 0)
    fitting = range(1, cluster + 1) if cluster > 1 else ()
    assert list(device.clusters) == [
        (gpu[0] if blocks == 1 else gpu[4] // blocks) if blocks in fitting else 0 for blocks in range(17)
    ]
    asked = kernels.times_asked(index)
    assert asked <= 16
    # The driver is not asked again, and the caller's device is as before.
    assert bytes(kernels.device(index, (1, 1, 9, 90, 4))) == bytes(device)
    assert kernels.times_asked(index) == 0
    assert kernels.current_gpu() == 0


def test_no_such_gpu(kernels: Kernels) -> None:
    for index in (-1, 16, 1000):
        device = kernels.device(index)
        assert not any(bytes(device))


def test_too_large_a_cluster_falls_back(kernels: Kernels) -> None:
    # Of 32 units a block, hidden size 256 takes clusters of 8.
    problem = Problem(64, 256, 1, 4, 2, False, False)
    whole, part, none = (kernels.choose_plan(problem, Device(132, SHARED, most), PlanOverride()) for most in (16, 7, 1))
    assert [plan.cluster for plan in (whole, part, none)] == [True, False, False]
    assert min(plan.blocks for plan in (whole, part, none)) > 0


def test_a_kernel_is_granted_all_it_may_need_once(kernels: Kernels) -> None:
    """Each kernel on each GPU, whatever size is launched first, so that launches of other sizes change nothing."""
    gpus = {10: (132, SHARED, 9, 90, 16), 11: (170, 99 * 1024, 12, 90, 8)}
    for index, gpu in gpus.items():
        kernels.device(index, gpu)
    kernels.granted()
    for kernel in (0x1000, 0x2000):
        for index, (_, shared, *_) in gpus.items():
            for large_clusters in (False, True):
                assert kernels.prepare(kernel, index, large_clusters) is None
                # 1024 bytes are those of the kernel's own variables.
                assert kernels.granted() == (shared - 1024, 16 if large_clusters else 8, 1 + large_clusters)
                assert kernels.prepare(kernel, index, large_clusters) is None
                assert kernels.granted()[2] == 0


def test_a_refused_grant_is_an_error_and_tried_again(kernels: Kernels) -> None:
    kernels.device(12, (1, 500, 9, 90, 16))  # less than the kernel's own variables take
    kernels.granted()
    for _ in range(2):
        assert kernels.prepare(0x1000, 12, False) is not None
        assert kernels.granted()[2] == 1
