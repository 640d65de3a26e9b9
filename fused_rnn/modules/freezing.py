"""Layers and cells whose weights are packed once, for models that are served: ``freeze`` and ``unfreeze``."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fused_rnn.functional.frozen import (
    check_call,
    find_change,
    freeze_weights,
    run_frozen_cell,
    run_frozen_layers,
    run_plain,
)
from fused_rnn.functional.recurrent import Mode
from fused_rnn.modules.weights import CELL_WEIGHTS

if TYPE_CHECKING:
    from typing_extensions import Self  # in the typing module only from Python 3.11 on

Module = TypeVar("Module", bound=nn.Module)
FROZEN_DTYPES = (None, torch.bfloat16, torch.int8)


class Watched(NamedTuple):
    """A parameter as it was when it was packed."""

    name: str
    weight: Tensor
    version: int | None
    """How often it was written to in place; None for a tensor of inference mode, which does not count that."""
    address: int


class Frozen:
    """The packed weights of one layer or cell.

    A copy of it, by pickle or by ``copy.deepcopy``, only knows that the layer is frozen and in which dtype: the copied
    layer packs its own weights in its first call.

    Args:
        dtype: the dtype of the packed weights; None for that of the parameters.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self.mode: Mode | None = None
        self.packed: Tensor | None = None
        self.watched: list[Watched] = []
        self.weights: list[Tensor] = []
        self.is_layer = self.batch_first = False
        self.rank = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what pickle and deepcopy make a copy of."""
        return Frozen, (self.dtype,)

    def pack(self, module: nn.Module) -> None:
        """Pack the present weights of a layer or cell."""
        name = type(module).__name__
        self.weights = _parameters(module)
        for weight_name, weight in zip(_names(module), self.weights, strict=True):
            if weight.device.type != "cpu":
                raise NotImplementedError(
                    f"only a {name} on the CPU can be frozen, and its weights are on {weight.device}"
                )
            if self.dtype == torch.int8 and not weight.isfinite().all():
                raise ValueError(f"{weight_name} of the {name} is not finite, so it cannot be frozen as torch.int8")
        if self.dtype not in (None, self.weights[0].dtype, *_roundings(self.weights[0].dtype)):
            raise ValueError(f"a {name} of {self.weights[0].dtype} cannot be frozen as {self.dtype}")
        layers, directions = getattr(module, "num_layers", 1), 2 if getattr(module, "bidirectional", False) else 1
        kind, cell = _kind(module)
        mode, self.packed = freeze_weights(kind, cell, self.weights, layers, directions, self.dtype)
        self.is_layer, self.batch_first = isinstance(module, nn.RNNBase), getattr(module, "batch_first", False)
        self.rank = 3 if self.is_layer else 2
        self.watched = [
            Watched(weight_name, weight, _version(weight), weight.data_ptr())
            for weight_name, weight in zip(_names(module), self.weights, strict=True)
        ]
        self.mode = mode  # last, since another thread may call the layer as soon as it is there

    def check(self, module: nn.Module) -> None:
        """Raise an error if a weight is no longer what was packed, as far as PyTorch knows."""
        attributes = module.__dict__
        parameters = attributes["_parameters"]
        # What torch.nn's layers compute with, see fused_rnn/modules/weights.py; cells have no such list.
        listed = attributes.get("_flat_weights", self.weights)
        change = find_change(self.watched, parameters, attributes, listed)
        if change is not None:
            raise RuntimeError(_changed(module, *change))


class Freezable(nn.Module):
    """What the layers and cells of this package have in common: their weights can be frozen."""

    _frozen: Frozen | None = None

    def freeze(self, dtype: torch.dtype | None = None) -> "Self":
        """Pack the weights once for all calls to come, so that calls of few steps, as in a served model, are faster.

        See :func:`fused_rnn.freeze` for the argument, the errors, and what undoes it.

        Returns:
            The layer itself.
        """
        _check_dtype(dtype)
        if self.training:
            raise RuntimeError(
                f"a {type(self).__name__} in training mode cannot be frozen: call eval() on the model first"
            )
        frozen = Frozen(dtype)
        frozen.pack(self)
        self._frozen = frozen
        return self

    def unfreeze(self) -> "Self":
        """Undo :meth:`freeze`; nothing happens if the layer is not frozen.

        Returns:
            The layer itself.
        """
        self.__dict__.pop("_frozen", None)
        return self

    def train(self, mode: bool = True) -> "Self":
        """Set training or evaluation mode, as torch.nn.Module does; training mode unfreezes the weights."""
        if mode:
            self.unfreeze()
        return super().train(mode)

    def extra_repr(self) -> str:
        """Return the arguments of the constructor, and whether and how the weights are frozen."""
        arguments = super().extra_repr()
        if self._frozen is None:
            return arguments
        return f"{arguments}, frozen{'' if self._frozen.dtype is None else f'={self._frozen.dtype}'}"

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unfreeze()
        super()._load_from_state_dict(*args, **kwargs)


def freeze(model: Module, dtype: torch.dtype | None = None) -> Module:
    """Pack the weights of all recurrent layers and cells of this package in a model once, for inference on the CPU.

    Without it nothing that is derived from a weight outlives a call, so that calls of few time steps read the weights
    as they are stored. A frozen layer keeps them as its kernels read them, in addition to the parameters, or rounded to
    fewer bits. It stays frozen until :func:`unfreeze`, until ``train()``, or until a ``state_dict`` is loaded. Packed
    weights are not part of the ``state_dict``. A copy by pickle or ``copy.deepcopy`` is frozen, too.

    A call of a frozen layer raises an error where a gradient is needed, under autocast, and in transforms of
    torch.func; and where PyTorch knows that a weight has changed since: it was replaced, moved, or written to in place.
    It cannot know of a write through ``weight.data`` or a NumPy array. What torch.compile, torch.export,
    torch.jit.trace and torch.onnx.export make of a frozen layer is the ordinary layer, with the weights as they are.

    Args:
        model: the model, in evaluation mode; or a layer or cell. It is changed in place.
        dtype: what weights are rounded to. None for nothing, which gives the results of the ordinary layer: to the bit
            where that packs its weights, else up to the order of its sums. ``torch.bfloat16`` for a layer in float32:
            half the memory to read, and everything else in float32. ``torch.int8`` for a layer of any dtype but
            float64: a quarter of it, and products of integers. Each row of a weight matrix, and each vector that it
            is multiplied by, has a scale of its own; :func:`fused_rnn.reference.quantized_linear` defines the products.
            Sums, states, biases and the projection of ``proj_size`` are not rounded.

    Returns:
        The same model object.

    Raises:
        ValueError: there is no such layer in the model; ``dtype`` is another one, or does not fit a layer; with int8, a
            weight is not finite; a parameter is not initialised or not a plain one, as with torch.nn.utils.parametrize.
        RuntimeError: a layer is in training mode.
        NotImplementedError: a layer is not on the CPU.

    Example:
        >>> import torch, fused_rnn
        >>> model = torch.nn.Sequential(fused_rnn.LSTM(4, 8)).eval()
        >>> fused_rnn.freeze(model)
        Sequential(
          (0): LSTM(4, 8, frozen)
        )
        >>> with torch.inference_mode():
        ...     output, states = model(torch.randn(1, 3, 4))
    """
    layers = [module for module in model.modules() if isinstance(module, Freezable)]
    if not layers:
        raise ValueError("model has no recurrent layer or cell of fused_rnn: fused_rnn.convert(model) makes them")
    frozen = [(layer, Frozen(dtype)) for layer in layers]
    _check_dtype(dtype)
    for layer in layers:
        if layer.training:
            layer.freeze(dtype)  # raises
    for layer, weights in frozen:  # all of them, or none if one cannot be frozen
        weights.pack(layer)
    for layer, weights in frozen:
        layer._frozen = weights
    return model


def unfreeze(model: Module) -> Module:
    """Undo :func:`freeze` for all layers and cells of a model.

    Args:
        model: the model, or a layer or cell; it is changed in place.

    Returns:
        The same model object.

    Example:
        >>> import fused_rnn
        >>> fused_rnn.unfreeze(fused_rnn.freeze(fused_rnn.GRU(4, 8).eval()))
        GRU(4, 8)
    """
    for module in model.modules():
        if isinstance(module, Freezable):
            module.unfreeze()
    return model


def run_frozen(
    module: Any,
    input: Any,
    states: Sequence[Tensor] | None,
    lengths: Tensor | Sequence[int] | None = None,
    return_states: bool = False,
    resets: Tensor | None = None,
    reset_states: Sequence[Tensor] | None = None,
) -> tuple[Any, ...]:
    """Run a frozen layer, or with the same arguments but ``lengths`` and ``return_states`` a frozen cell.

    Args:
        module: the layer or cell.
        input: as for its ``forward``.
        states: the initial states, h first; None for zero.
        lengths: as for ``forward``.
        return_states: as for ``forward``.
        resets: as for ``forward``; for a cell its ``reset``.
        reset_states: as for ``forward``, as a sequence.

    Returns:
        The output and the final states of a layer, and with ``return_states`` the states of every step; of a cell the
        new states.
    """
    frozen: Any = module._frozen
    if frozen.mode is None:
        frozen.pack(module)
    frozen.check(module)
    has_options = lengths is not None or resets is not None or reset_states is not None or return_states
    if not has_options and type(input) is Tensor and input.dim() == frozen.rank:
        results = run_plain(input, states, frozen.weights, frozen.packed, frozen.batch_first)
        if results is not None:
            return results if frozen.is_layer else results[1:]  # the output of a cell is h, too
    check_call(module, frozen.weights, input)
    if not frozen.is_layer:
        return run_frozen_cell(frozen.mode, input, states, frozen.weights, resets, reset_states)
    return run_frozen_layers(
        frozen.mode, input, states, frozen.weights, module.num_layers, module.bidirectional, 0.0, module.batch_first,
        lengths, return_states, resets, reset_states,
    )  # fmt: skip


def _check_dtype(dtype: torch.dtype | None) -> None:
    if dtype not in FROZEN_DTYPES:
        raise ValueError(f"dtype must be None, torch.bfloat16 or torch.int8, got {dtype}")


def _roundings(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """Return the dtypes to which weights of a dtype can be rounded."""
    if dtype == torch.float64:
        return ()
    return (torch.bfloat16, torch.int8) if dtype == torch.float32 else (torch.int8,)


def _kind(module: nn.Module) -> tuple[str, str]:
    """Return the name of a module's kind in error messages, and that of its cell."""
    if isinstance(module, nn.RNNBase):
        return module.mode.partition("_")[0], module.mode.lower()  # torch.nn's modes are our cells in capitals
    if isinstance(module, nn.RNNCell):
        return "RNN", f"rnn_{module.nonlinearity}"
    return ("LSTM", "lstm") if isinstance(module, nn.LSTMCell) else ("GRU", "gru")


def _names(module: Any) -> Sequence[str]:
    """Return the names of a layer's or cell's weights, in the order in which the operators take them."""
    if isinstance(module, nn.RNNBase):
        return module._flat_weights_names
    return CELL_WEIGHTS if module.bias else CELL_WEIGHTS[:2]


def _parameters(module: nn.Module) -> list[Tensor]:
    """Return the weights of a module, which must be plain parameters."""
    weights: list[Tensor] = []
    for name in _names(module):
        weight = module._parameters.get(name)
        if weight is None or name in vars(module) or isinstance(weight, UninitializedParameter):
            raise ValueError(
                f"{name} of the {type(module).__name__} is not an initialized parameter of its own, so it cannot be "
                "frozen"
            )
        weights.append(weight)
    return weights


def _version(weight: Tensor) -> int | None:
    return None if weight.is_inference() else weight._version


def _changed(module: nn.Module, name: str, how: str) -> str:
    kind = type(module).__name__
    return f"{name} of the frozen {kind} was {how} since it was frozen: freeze() the {kind} again, or unfreeze() it"
