"""The kernels, and the operators that call them, built once for all tests of this folder."""

from typing import Any

import pytest
import torch

from cuda_on_host.build import build, build_glue
from cuda_on_host.structs import Kernels


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    return Kernels(build())


@pytest.fixture(scope="session")
def operators() -> Any:
    torch.ops.load_library(str(build_glue()))
    return torch.ops.cuda_on_host
