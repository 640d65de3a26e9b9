"""Assertions that compare results, with all tolerances of the tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Added to twice the error of PyTorch, which on a small tensor may happen to be zero: a few rounding errors, relative to
# the largest value. For float64, where the peer is the exact result itself, this is the whole tolerance.
TINY = {torch.float64: 1e-12, torch.float32: 5e-7, torch.bfloat16: 2**-8, torch.float16: 2**-11}
# Added where the computation is in float32: our fast sigmoid and tanh have errors of up to 1.3e-7.
ACTIVATION = 1.5e-7


def assert_accurate(ours: Tensor, exact: Tensor, peer: Tensor | None = None, name: str = "result") -> None:
    """Assert that the error of ``ours`` is at most twice that of ``peer``, plus ``TINY`` and ``ACTIVATION``.

    Args:
        ours: the tensor to test; all three may be on any device.
        exact: the result in float64, from an independent oracle.
        peer: PyTorch's result in the dtype of ``ours``; None for ``exact`` itself.
        name: the tensor's name in messages.
    """
    assert ours.shape == exact.shape, f"{name}: shape {ours.shape}, expected {exact.shape}"
    ours, exact = ours.detach().cpu(), exact.detach().cpu()
    finite = exact.isfinite()
    # Non-finite values must be the same, in the same positions.
    torch.testing.assert_close(ours.double()[~finite], exact[~finite], equal_nan=True, msg=f"{name}: NaN or Inf differ")
    if not finite.any():
        return
    exact = exact[finite]
    error = (ours.double()[finite] - exact).abs().max().item()
    allowed = 0.0 if peer is None else 2 * (peer.detach().cpu().double()[finite] - exact).abs().max().item()
    allowed += TINY[ours.dtype] * exact.abs().max().item() + (0 if ours.dtype == torch.float64 else ACTIVATION)
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def assert_all_accurate(
    ours: Mapping[Any, Tensor],
    exact: Mapping[Any, Tensor],
    peer: Mapping[Any, Tensor] | None = None,
    *,
    note: str = "",
) -> None:
    """Call :func:`assert_accurate` for each name in the results; messages end in ``note``."""
    assert ours.keys() == exact.keys()
    for name, tensor in ours.items():
        assert_accurate(tensor, exact[name], None if peer is None else peer[name], f"{name}{note}")


def root_mean_square(values: Tensor, exact: Tensor) -> float:
    """Return the root mean square error of ``values``."""
    return (values.double() - exact).square().mean().sqrt().item()


def assert_little_noise(ours: Mapping[Any, Tensor], exact: Mapping[Any, Tensor], peer: Mapping[Any, Tensor]) -> None:
    """Assert that the root mean square error of ``ours`` is at most twice that of ``peer``."""
    for name, tensor in ours.items():
        own, theirs = (root_mean_square(values, exact[name]) for values in (tensor, peer[name]))
        assert own <= 2 * theirs, f"{name}: root mean square error {own:.3g}, that of the peer {theirs:.3g}"


def assert_same_noise(ours: Mapping[Any, Tensor], exact: Mapping[Any, Tensor], peer: Mapping[Any, Tensor]) -> None:
    """Assert that the root mean square error of ``ours`` is within 4 % of that of ``peer``.

    The peer rounds at the same points of the computation. The bound detects an additional rounding in each step, and
    also a rounding of the peer that ours does not have.
    """
    for name, tensor in ours.items():
        own, theirs = (root_mean_square(values, exact[name]) for values in (tensor, peer[name]))
        assert 0.96 * theirs <= own <= 1.04 * theirs, f"{name}: root mean square error {own:.3g}, expected {theirs:.3g}"


def assert_identical(ours: Mapping[Any, Tensor], theirs: Mapping[Any, Tensor]) -> None:
    """Assert that two results have the same names and agree bit for bit."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), f"{name} differs"


def differentiate(outputs: Sequence[Tensor], inputs: Mapping[Any, Tensor]) -> dict[str, Tensor]:
    """Return the gradients of ``inputs`` for fixed random gradients of ``outputs``, the same in every dtype."""
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(out.shape, generator=generator).bfloat16().to(out) for out in outputs]
    gradients = torch.autograd.grad(list(outputs), list(inputs.values()), grads, materialize_grads=True)
    return {f"grad {name}": gradient for name, gradient in zip(inputs, gradients, strict=True)}
