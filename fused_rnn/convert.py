"""Converts the recurrent layers and masked convolutions of a model to those of this package, and back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.rnn import RNNCellBase
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from fused_rnn import convert_masked_conv2d as masked
from fused_rnn.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, torch_instances, unfreeze
from fused_rnn.modules.freezing import Freezable

COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}
"""The class of this package for each class of torch.nn that has one of the same name."""
INSTANCES: dict[type[nn.Module], type[nn.Module]] = {
    cls: getattr(torch_instances, theirs.__name__)
    for theirs, ours in COUNTERPARTS.items()
    if not issubclass(ours, theirs)
    for cls in (theirs, ours)
}
"""The class that is an instance of torch.nn's class too, for each layer of torch.nn and of this package."""
ORIGINALS = {
    ours: theirs for classes in (COUNTERPARTS, INSTANCES) for theirs, ours in classes.items() if theirs in COUNTERPARTS
}
"""The class of torch.nn for each class of this package."""
NAMES = {cls.__name__ for cls in COUNTERPARTS}
Decision = type[nn.Module] | str | None
"""What to do with a module: its new class; the reason why it is kept; or None for a module that is not reported."""


ASKING_PACKAGES = ("torchrl",)
"""Packages whose modules ask whether a layer inside them is an instance of torch.nn's class."""
EXACT_CLASSES = "quantize_dynamic, thop and opacus compare the class itself and pass over these layers: revert first"


@dataclass(frozen=True)
class Layer:
    """A recurrent layer or masked convolution of a model, as a report lists it."""

    names: tuple[str, ...]
    """All its qualified names in the model; "" is the model itself."""
    module: nn.Module
    before: str
    """The name of its class before."""
    after: str
    """The name of its class now."""
    reason: str | None = None
    """Why it was not replaced; None if it was."""

    def __str__(self) -> str:
        place = ", ".join(name or "(the model itself)" for name in self.names)
        return f"{place}: {self.before} -> {self.after}" if self.reason is None else f"{place}: {self.reason}"


@dataclass(frozen=True)
class Report:
    """The report of :func:`convert` or :func:`revert`, which is meant to be printed."""

    model: nn.Module
    """The same model object that was given."""
    replaced: tuple[Layer, ...]
    kept: tuple[Layer, ...]
    """Recurrent layers and masked convolutions that were not replaced, each with a reason."""
    notes: tuple[str, ...] = ()
    """What else is known of other packages that use the model."""

    def __str__(self) -> str:
        total = len(self.replaced) + len(self.kept)
        lines = [f"replaced {len(self.replaced)} of {total} layers"]
        lines += [f"  {layer}" for layer in self.replaced]
        if self.kept:
            lines += ["kept", *(f"  {layer}" for layer in self.kept)]
        if self.notes:
            lines += ["notes", *(f"  {note}" for note in self.notes)]
        return "\n".join(lines)


def convert(model: nn.Module, *, subclasses: bool = False, keep_isinstance: bool = False) -> Report:
    """Convert the LSTM, GRU and RNN layers and cells of torch.nn in a model, or the model itself, to this package's.

    The modules remain the same objects and only change their class, as they do in torch.nn.utils.parametrize. So
    parameters, optimizers, tied weights, modules used in several places, hooks, parametrizations, names, training mode,
    dtype, device and state_dict are all preserved, and :func:`revert` restores the model exactly.

    A converted layer is a torch.nn.RNNBase, but no torch.nn.LSTM, GRU or RNN, so code that checks
    ``isinstance(module, torch.nn.LSTM)`` does not find it (converted cells are still instances of torch.nn's cells).
    With ``keep_isinstance`` it does. Code that compares the class itself passes over every converted layer and cell and
    no error tells: ``torch.ao.quantization.quantize_dynamic(model, {torch.nn.LSTM})``, thop and opacus, for example.
    :func:`revert` the model first.

    Masked convolutions of other packages are subclasses of torch.nn.Conv2d with a buffer ``mask``. If that is a mask of
    :class:`fused_rnn.MaskedConv2d`, and if the layer computes what a MaskedConv2d does, which is found out by running a
    copy of it, then it becomes one. It remains an instance of its class, too, and keeps the buffer. Masked entries of
    its weight become zero.

    Only registered submodules are found, not those in Python lists. Convert before torch.compile, torch.jit.trace and
    torch.distributed's fully_shard wrap the model. torch.jit.script cannot compile layers of this package and says so:
    trace the model, or :func:`revert` it first.

    Args:
        model: the model, changed in place.
        subclasses: whether to convert instances of subclasses of torch.nn's layers too. Such a module keeps all that
            its class overrides and is still an instance of it; only what it inherits from torch.nn, or calls by
            ``super()``, is replaced. So a subclass whose ``forward`` never calls that of torch.nn gains nothing.
        keep_isinstance: whether a converted layer is still an instance of torch.nn's class too, which some packages
            need, such as torchrl. The price is that torch.compile refuses to trace it, as it refuses torch.nn's layers,
            unless ``torch._dynamo.config.allow_rnn`` is set.
            Layers of this package in the model become such instances, too.

    Returns:
        A report with the ``model`` (the same object, even where it is a layer itself), the layers ``replaced``, those
        ``kept`` with the reason why, and ``notes`` on packages that need something else.

    Example:
        >>> import torch, fused_rnn
        >>> model = torch.nn.Sequential(torch.nn.GRU(4, 8), torch.ao.nn.quantizable.LSTMCell(4, 8))
        >>> print(fused_rnn.convert(model))
        replaced 1 of 2 layers
          0: torch.nn.GRU -> fused_rnn.GRU
        kept
          1: torch.ao.nn.quantizable.modules.rnn.LSTMCell has no counterpart here
        notes
          quantize_dynamic, thop and opacus compare the class itself and pass over these layers: revert first
        >>> model[0](torch.randn(5, 3, 4))[0].shape
        torch.Size([5, 3, 8])
    """
    report = _change_classes(model, lambda module: _fused_class(module, subclasses, keep_isinstance))
    return replace(report, notes=tuple(_notes(report)))


def revert(model: nn.Module) -> Report:
    """Undo :func:`convert`: convert the layers and cells of this package in a model to those of torch.nn.

    It reverts all layers of this package, not only those that :func:`convert` made, and unfreezes frozen ones first.

    Args:
        model: the model, changed in place.

    Returns:
        A report with the ``model`` (the same object), the layers ``replaced``, and those ``kept`` with the reason why.

    Example:
        >>> import torch, fused_rnn
        >>> print(fused_rnn.revert(fused_rnn.LSTM(4, 8)))
        replaced 1 of 1 layers
          (the model itself): fused_rnn.LSTM -> torch.nn.LSTM
    """
    return _change_classes(unfreeze(model), _torch_class)


def _change_classes(model: nn.Module, decide: Callable[[nn.Module], Decision]) -> Report:
    """Apply the decision of ``decide`` to each module of a model, and report it."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    replaced, kept = [], []
    for module, module_names in names.items():
        decision, before = decide(module), _name(_class(module))
        if isinstance(decision, str):
            kept.append(Layer(tuple(module_names), module, before, before, decision))
        elif decision is not None:
            _set_class(module, decision)
            replaced.append(Layer(tuple(module_names), module, before, _name(decision)))
    masked.zero_masked_weights(model, [layer.module for layer in replaced])
    return Report(model, tuple(replaced), tuple(kept))


def _notes(report: Report) -> Iterator[str]:
    """Yield what to know of other packages that use the replaced layers."""
    layers = [layer for layer in report.replaced if _class(layer.module) in ORIGINALS]
    for layer in layers:
        if isinstance(layer.module, tuple(COUNTERPARTS)):
            continue
        for name in layer.names:
            parent = report.model.get_submodule(name.rpartition(".")[0])
            package = type(parent).__module__.partition(".")[0]
            if package in ASKING_PACKAGES:
                original = _name(ORIGINALS[_class(layer.module)])
                yield f"{name}: {package} asks whether it is a {original}: convert with keep_isinstance=True"
    if layers:
        yield EXACT_CLASSES


def _fused_class(module: nn.Module, subclasses: bool, keep_isinstance: bool) -> Decision:
    """Decide what :func:`convert` does with a module."""
    if isinstance(module, torch.jit.ScriptModule):
        scripted = getattr(module, "original_name", "") in NAMES
        return "compiled by torch.jit; convert the model before" if scripted else None
    cls = _class(module)
    if keep_isinstance and cls in INSTANCES and cls in ORIGINALS:
        return INSTANCES[cls]
    if issubclass(cls, (*ORIGINALS, Derived)):
        return None
    if issubclass(cls, nn.Conv2d):
        return masked.decide(module, cls)
    original = next((original for original in COUNTERPARTS if issubclass(cls, original)), None)
    if original is None:
        return f"{_name(cls)} has no counterpart here" if _is_recurrent(cls) else None
    if cls is not original and not subclasses:
        return f"{_name(cls)} is a subclass of {_name(original)}; subclasses=True converts it"
    if "forward" in vars(module):
        return "its forward was replaced on the module itself"
    if any(isinstance(weight, UninitializedParameter) for weight in module.parameters()):
        return "its parameters are not initialized yet; run the model once before"
    if cls is not original:
        return derived(cls)
    return INSTANCES[cls] if keep_isinstance and cls in INSTANCES else COUNTERPARTS[cls]


def _torch_class(module: nn.Module) -> Decision:
    """Decide what :func:`revert` does with a module."""
    cls = _class(module)
    if issubclass(cls, (Derived, masked.ConvertedMaskedConv2d)):
        return cls.original
    if cls in ORIGINALS:
        return ORIGINALS[cls]
    return f"{_name(cls)} is a subclass of a layer of this package" if issubclass(cls, tuple(ORIGINALS)) else None


def _is_recurrent(cls: type) -> bool:
    """Whether ``cls`` is another of torch's recurrent layers, quantized ones included."""
    quantized = cls.__module__.startswith("torch.ao.nn.") and cls.__name__ in NAMES
    return quantized or issubclass(cls, (nn.RNNBase, RNNCellBase))


def _name(cls: type[nn.Module]) -> str:
    """The name of a class by which a user knows it."""
    if issubclass(cls, Derived):
        ours = next(COUNTERPARTS[base] for base in cls.__mro__ if base in COUNTERPARTS)
        return f"{_name(cls.original)} on {_name(ours)}"
    if issubclass(cls, masked.ConvertedMaskedConv2d):
        return f"{_name(cls.original)} on fused_rnn.MaskedConv2d"
    if cls in INSTANCES.values():
        return f"fused_rnn.{cls.__qualname__}, which is a torch.nn.{cls.__qualname__} too"
    package = "torch.nn" if cls.__module__.startswith("torch.nn.modules.") else cls.__module__
    return f"{'fused_rnn' if cls in ORIGINALS else package}.{cls.__qualname__}"


def _class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without the subclass that torch.nn.utils.parametrize puts in its place."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    """Change the class of a module, but keep the subclass that torch.nn.utils.parametrize derives from it."""
    if parametrize.is_parametrized(module):
        members = {name: value for name, value in vars(type(module)).items() if name not in ("__dict__", "__weakref__")}
        cls = type(f"Parametrized{cls.__name__}", (cls,), members)
    module.__class__ = cls


class Derived:
    """A mark of the classes that :func:`derived` makes, which lets pickle make them again: no module contains them."""

    original: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Return how pickle makes the object again: from the class that it had before."""
        reduced = super().__reduce_ex__(max(int(protocol), 2))
        return _new_derived, (self.original,), *reduced[2:]


def _base(theirs: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a class of torch.nn that computes as its counterpart does.

    Our cells are such subclasses themselves. Our layers are not, but an instance of a subclass of torch.nn.LSTM must
    stay an instance of torch.nn.LSTM, so their ``forward``, and their refusal of torch.jit.script, are put into a new
    subclass of torch.nn's layer.
    """
    ours = COUNTERPARTS[theirs]
    if issubclass(ours, theirs):
        return ours
    return type(
        ours.__name__, (Freezable, theirs), {name: vars(ours)[name] for name in ("forward", "__prepare_scriptable__")}
    )


_bases = {theirs: _base(theirs) for theirs in COUNTERPARTS}
_derived: dict[type[nn.Module], type[nn.Module]] = {}


def derived(cls: type[nn.Module]) -> type[nn.Module]:
    """Derive from a subclass of one of torch.nn's layers a class that inherits from this package's layer instead.

    In its method resolution order, our layer comes after all of ``cls`` and right before torch.nn's layer, so that
    ``super()`` in ``cls`` finds our ``forward``.

    Args:
        cls: a subclass of one of torch.nn's classes in :data:`COUNTERPARTS`.

    Returns:
        A class of the same name, always the same one for ``cls``.
    """
    if cls in _derived:
        return _derived[cls]
    ours = next(base for theirs, base in _bases.items() if issubclass(cls, theirs))
    namespace = {
        "original": cls,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    # cls must be the first base, so that instances have the memory layout of cls: else __class__ cannot be assigned.
    return _derived.setdefault(cls, type(cls.__name__, (cls, ours, Derived), namespace))


def _new_derived(cls: type[nn.Module]) -> nn.Module:
    """Return an empty object of the class :func:`derived` from ``cls``, for pickle to fill."""
    return object.__new__(derived(cls))
