# ruff: noqa: N999  (the name of the extension)
from typing import TypedDict

class BuildInfo(TypedDict):
    compiler: str
    cpu_capabilities: list[str]
    cpu_capability: str
    cuda_version: str | None
    cuda_archs: str
    cuda_devices: int

def build_info() -> BuildInfo: ...
