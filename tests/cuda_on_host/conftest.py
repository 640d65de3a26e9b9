"""The kernels, built once for all tests of this folder."""

import pytest

from cuda_on_host.build import build
from cuda_on_host.structs import Kernels


@pytest.fixture(scope="session")
def kernels() -> Kernels:
    return Kernels(build())
