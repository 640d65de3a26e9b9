"""The version, the public names and the configuration that the package reports."""

import re
from pathlib import Path

import pytest
import torch

import fused_rnn
from fused_rnn import _C


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    fused_rnn.show_config()
    shown = capsys.readouterr().out
    info = _C.build_info()
    for value in (fused_rnn.__version__, torch.__version__, info["compiler"], *info["cpu_capabilities"]):
        assert value in shown
    assert f"{info['cpu_capability']} chosen" in shown
    assert re.search(r"CUDA devices +\d+\n", shown)


def test_show_config_without_cuda(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    info = {**_C.build_info(), "cuda_version": None, "cuda_archs": "", "cuda_devices": 0}
    monkeypatch.setattr(_C, "build_info", lambda: info)
    fused_rnn.show_config()
    assert re.search(r"CUDA built with +none\n", capsys.readouterr().out)


@pytest.mark.parametrize("has", [False, True])
def test_show_config_tells_of_pairs(
    has: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    info = {**_C.build_info(), "multiplies_pairs": has}
    monkeypatch.setattr(_C, "build_info", lambda: info)
    fused_rnn.show_config()
    assert ("chosen, with AVX512_BF16\n" in capsys.readouterr().out) == has


@pytest.mark.instruction_sets
def test_pairs_are_multiplied_where_the_processor_can() -> None:
    info = _C.build_info()
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo")
    has = "avx512_bf16" in cpuinfo.read_text().split()
    assert info["multiplies_pairs"] == (has and info["cpu_capability"] == "AVX512")


def test_public_names() -> None:
    assert all(hasattr(fused_rnn, name) for name in fused_rnn.__all__)
