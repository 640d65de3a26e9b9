"""Asserts that the imported package is installed with CUDA kernels for PyTorch's CUDA 13 build; prints its config."""

import sysconfig
from pathlib import Path

import torch

import fused_rnn
from fused_rnn import _C


def main() -> None:
    for module in (fused_rnn, _C):
        print(module.__file__)
        assert Path(str(module.__file__)).is_relative_to(sysconfig.get_path("platlib"))
    print(f"torch {torch.__version__} for CUDA {torch.version.cuda}")
    assert str(torch.version.cuda).startswith("13.")
    assert _C.build_info()["cuda_archs"] == "80;90a"
    fused_rnn.show_config()


if __name__ == "__main__":
    main()
