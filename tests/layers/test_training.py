"""Layers and cells in the techniques of training loops, each compared with torch.nn."""

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from cases import KINDS, Case, cell_case, flatten, result
from comparing import assert_all_accurate
from every_module import NAMES, SHAPES, pair, random, vector
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import fused_rnn
from fused_rnn import functional
from fused_rnn.functional.checks import KERNEL_DEVICES


def gradients(module: torch.nn.Module, input: Tensor, call: Callable[..., Any]) -> dict[str, Tensor]:
    """Return the output of ``call(input)`` as a vector, and the gradients of input and parameters."""
    leaf = input.detach().requires_grad_()
    output = vector(call, leaf)
    gradients_found = torch.autograd.grad(output.square().sum(), [leaf, *module.parameters()])
    names = ["input", *(name for name, _ in module.named_parameters())]
    return {"output": output.detach(), **dict(zip(names, gradients_found, strict=True))}


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_activation_checkpointing(name: str, use_reentrant: bool) -> None:
    ours, theirs = pair(name)
    input = random(*SHAPES[name])
    # Flattened, since a reentrant checkpoint does not find tensors in nested tuples.
    call = partial(checkpoint, lambda input: tuple(flatten(ours(input))), use_reentrant=use_reentrant)
    if use_reentrant:  # it does not support torch.autograd.grad
        vector(call, input.requires_grad_()).square().sum().backward()
        actual = {name: weight.grad for name, weight in ours.named_parameters() if weight.grad is not None}
        expected = gradients(theirs, input, theirs)
        assert_all_accurate(actual, {name: expected[name] for name, _ in ours.named_parameters()})
    else:
        assert_all_accurate(gradients(ours, input, call), gradients(theirs, input, theirs))


@pytest.mark.parametrize("name", NAMES)
def test_gradient_penalty_through_a_checkpoint(name: str) -> None:
    results = []
    input = random(*SHAPES[name]).requires_grad_()
    for module, call in zip(
        pair(name), (lambda m: partial(checkpoint, m, use_reentrant=False), lambda m: m), strict=True
    ):
        (first,) = torch.autograd.grad(vector(call(module), input).square().sum(), input, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), list(module.parameters()), materialize_grads=True)
        results.append(dict(enumerate((first.detach(), *second))))
    assert_all_accurate(*results)


@pytest.mark.parametrize("name", NAMES)
def test_saved_tensor_hooks(name: str) -> None:
    """Hooks may store the tensors saved for backward elsewhere, for example in a file."""
    ours, theirs = pair(name)
    input = random(*SHAPES[name])
    with torch.autograd.graph.saved_tensors_hooks(lambda x: pickle.dumps(x.detach()), pickle.loads):
        actual = gradients(ours, input, ours)
    assert_all_accurate(actual, gradients(theirs, input, theirs))


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled", "ignore:Error detected in")
@pytest.mark.parametrize("name", NAMES)
def test_anomaly_mode(name: str) -> None:
    ours, theirs = pair(name)
    input = random(*SHAPES[name])
    with torch.autograd.detect_anomaly():
        assert_all_accurate(gradients(ours, input, ours), gradients(theirs, input, theirs))
        with pytest.raises(RuntimeError, match=r"Function '(Recurrent|MaskedConv2d)FunctionBackward' returned nan"):
            vector(ours, input * float("nan")).sum().backward()


class WeightDrop(torch.nn.Module):
    """DropConnect (Merity et al., 2018): random zeros in a recurrent weight, new ones in each forward pass."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.nn.functional.dropout(weight, 0.5)


PARAMETRIZATIONS: dict[str, Callable[..., Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight drop": lambda module, name: parametrize.register_parametrization(module, name, WeightDrop()),
}


@pytest.mark.parametrize("kind", PARAMETRIZATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_parametrizations(name: str, kind: str) -> None:
    """A parametrized weight is recomputed in each call, and gradients reach the parameters behind it."""
    ours, theirs = pair(name)
    input = random(*SHAPES[name])
    weight = next(weight for weight, _ in ours.named_parameters() if weight == "weight" or "weight_ih" in weight)
    PARAMETRIZATIONS[kind](ours, weight)
    with parametrize.cached():
        computed = getattr(ours, weight)
        outputs = [
            vector(ours, input),
            vector(lambda input: functional_call(theirs, {weight: computed}, (input,)), input),
        ]
    leaves = list(getattr(ours.parametrizations, weight).parameters())
    grads = [torch.autograd.grad(output.square().sum(), leaves, retain_graph=True) for output in outputs]
    assert_all_accurate(
        *(dict(enumerate((output.detach(), *grad))) for output, grad in zip(outputs, grads, strict=True))
    )
    with torch.no_grad():
        for leaf in leaves:
            leaf.add_(torch.rand_like(leaf))
    assert not torch.equal(vector(ours, input), outputs[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """The operator runs in the lower precision for any dtype of input; gradients have the dtype of the weights."""
    ours, _ = pair(name, torch.float32)
    low = copy.deepcopy(ours).to(dtype)
    input = torch.randn(SHAPES[name])
    for given in (input, input.to(dtype)):
        with torch.autocast("cpu", dtype):
            outputs = flatten(ours(given))
            with torch.autocast("cpu", enabled=False):
                assert flatten(ours(input))[0].dtype == torch.float32
        assert all(map(torch.equal, outputs, flatten(low(input.to(dtype)))))
    grads = torch.autograd.grad(outputs[0].float().square().sum(), list(ours.parameters()), materialize_grads=True)
    of_low = torch.autograd.grad(
        flatten(low(input.to(dtype)))[0].float().square().sum(), list(low.parameters()), materialize_grads=True
    )
    assert all(torch.equal(grad, expected.float()) for grad, expected in zip(grads, of_low, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_autocast_of_states(kind: str, cell: bool, dtype: torch.dtype, device: str) -> None:
    """All given states are converted too, c0 of an LSTM included, and their gradients come back in float32."""
    case = Case(kind, num_layers=2, bidirectional=True)

    def results(package: Any, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
        if cell:
            return result(*cell_case(package, kind, 3, 4, 6, dtype, device=device))
        return result(case.module(package, dtype, device), *case.tensors(dtype, device))

    with torch.autocast(device, dtype):
        ours = results(fused_rnn, torch.float32, device)
    assert {tensor.dtype for name, tensor in ours.items() if name.startswith("out")} == {dtype}
    assert {tensor.dtype for name, tensor in ours.items() if name.startswith("grad")} == {torch.float32}
    assert_all_accurate(ours, results(torch.nn, torch.float64), results(torch.nn, dtype))


@pytest.fixture
def _autocast_on_cuda() -> Iterator[None]:
    """Enable the settings of torch.autocast("cuda") directly, which itself refuses to run without a GPU."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", before)


@pytest.mark.skipif("cuda" not in KERNEL_DEVICES["recurrent"], reason="fused_rnn is built without its CUDA kernels")
@pytest.mark.usefixtures("_autocast_on_cuda")
def test_autocast_of_a_gpu_is_not_that_of_the_cpu() -> None:
    """With fake tensors: only operators on a GPU get the lower precision, those on the CPU do not."""
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        empty = partial(torch.empty, device=device)
        with FakeTensorMode():
            input, step, picture = empty(5, 3, 4), empty(3, 4), empty(2, 4, 5, 5)
            outputs = [
                *flatten(functional.lstm(input, None, [empty(32, 4), empty(32, 8), empty(32), empty(32)])),
                *flatten(functional.gru(input, None, [empty(24, 4), empty(24, 8)])),
                *functional.lstm_cell(step, None, empty(32, 4), empty(32, 8)),
                functional.gru_cell(step, None, empty(24, 4), empty(24, 8)),
            ]
            if device in KERNEL_DEVICES["masked_conv2d"]:
                outputs.append(functional.masked_conv2d(picture, empty(8, 4, 3, 3), None, mask_type="A"))
        assert {(output.device.type, output.dtype) for output in outputs} == {(device, dtype)}


@pytest.mark.parametrize("name", NAMES)
def test_gradient_scaler(name: str) -> None:
    """Training in float16 with a scaled loss makes one step, and skips one with infinite gradients."""
    module, _ = pair(name, torch.float32)
    input = torch.randn(SHAPES[name])
    plain = copy.deepcopy(module)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    with torch.autocast("cpu", torch.float16):
        loss = vector(module, input).float().square().sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    with torch.autocast("cpu", torch.float16):
        vector(plain, input).float().square().sum().backward()
    torch.optim.SGD(plain.parameters(), 0.1).step()
    for actual, expected in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(actual, expected)

    before = copy.deepcopy(module.state_dict())
    scaler.scale(vector(module, input).sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 8.0
    assert all(torch.equal(weight, before[key]) for key, weight in module.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_deferred_initialisation(name: str) -> None:
    """Modules made on the meta device are allocated by to_empty and filled from a state_dict."""
    ours, _ = pair(name, torch.float32)
    form: dict[str, Any] = {"num_layers": 2, "bidirectional": True} if name in KINDS else {}
    args = (2, 2, 3, "B", 2) if name.startswith("MaskedConv") else (3, 2)
    with torch.device("meta"):
        deferred = type(ours)(*args, **form)
    assert all(weight.is_meta for weight in deferred.parameters())
    skipped = torch.nn.utils.skip_init(type(ours), *args, **form)
    for module in (deferred.to_empty(device="cpu"), skipped):
        module.load_state_dict(ours.state_dict())
        input = torch.randn(SHAPES[name])
        assert all(map(torch.equal, flatten(module(input)), flatten(ours(input))))


@pytest.mark.parametrize("name", NAMES)
def test_module_hooks(name: str) -> None:
    """Hooks on a module get its output and the gradients of its input."""
    seen = []
    input = random(*SHAPES[name])
    for module in pair(name):
        module.register_full_backward_hook(lambda m, grad_input, grad_output: seen.append(grad_input[0].clone()))
        module.register_forward_hook(lambda m, args, output: seen.append(flatten(output)[0].detach()))
        gradients(module, input, module)
    assert_all_accurate(dict(enumerate(seen[:2])), dict(enumerate(seen[2:])))


@pytest.mark.parametrize("kind", KINDS)
def test_modules_saved_before_projections_load(kind: str) -> None:
    """A module that was saved by a torch without proj_size lacks that attribute."""
    module = getattr(fused_rnn, kind)(4, 8)
    old = object.__new__(type(module))
    old.__setstate__({key: value for key, value in module.__dict__.items() if key != "proj_size"})
    file = io.BytesIO()
    torch.save(old, file)
    file.seek(0)
    input = torch.randn(5, 3, 4)
    for loaded in (old, torch.load(file, weights_only=False)):
        assert all(map(torch.equal, flatten(loaded(input)), flatten(module(input))))
