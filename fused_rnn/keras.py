"""Makes layers and cells from those of Keras."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy
import torch
from torch import Tensor

from fused_rnn.foreign import Kind, Weights, cell_of, layer_of, reorder
from fused_rnn.modules import GRU, LSTM, GRUCell, LSTMCell

# Where Keras's gates lie in torch.nn's order: i, f, g, o is Keras's i, f, c, o; r, z, n from z, r, h.
GATE_ORDER: dict[Kind, tuple[int, ...]] = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2)}
NAMES = (*get_args(Kind), *(f"{kind}Cell" for kind in get_args(Kind)))
# What the configuration of a Keras layer must say, where it says something, for ours to compute the same.
REQUIRED: dict[str, Any] = {
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "dropout": 0,
    "recurrent_dropout": 0,
    "stateful": False,
    "time_major": False,
    "reset_after": True,
}


def from_keras(
    source: Any, kind: str | None = None, *, bidirectional: bool = False, reset_after: bool | None = None
) -> LSTM | GRU | LSTMCell | GRUCell:
    """Make a layer or cell of this package from one of Keras, or from its weights.

    The result computes what Keras's layer does when it returns all its sequences and states; its last output alone,
    Keras's default, is ``h_n``. It is ``batch_first``, as Keras is. Masking is for the caller to do, with packed
    sequences. Where Keras has one bias, ``bias_hh`` is zero; in training both learn.

    Args:
        source: a Keras LSTM, GRU, LSTMCell or GRUCell, or a Bidirectional LSTM or GRU, once it is built; or the arrays
            that its ``get_weights()`` returns: for each direction ``kernel [input_size, gates * hidden_size]``,
            ``recurrent_kernel [hidden_size, gates * hidden_size]`` and, unless ``use_bias=False``, ``bias``.
        kind: for arrays, ``"LSTM"``, ``"GRU"``, ``"LSTMCell"`` or ``"GRUCell"``.
        bidirectional: for arrays, whether there are two directions.
        reset_after: for arrays of a GRU without biases, where nothing else tells, Keras's ``reset_after``.

    Returns:
        A layer or cell with a copy of the weights, in their dtype.

    Raises:
        ValueError: the layer is none of these or is not built, or computes something else: a GRU with
            ``reset_after=False`` (:func:`fused_rnn.reference.gru` has it), other activations, dropout inside the step,
            ``stateful``, ``go_backwards``, or a ``merge_mode`` other than "concat". To leave out what matters in
            training alone, such as dropout, give the arrays instead of the layer.
        TypeError: ``kind``, ``bidirectional`` or ``reset_after`` is given with a layer, which knows them.

    Example:
        >>> import numpy, torch, fused_rnn
        >>> kernel, recurrent_kernel, bias = numpy.zeros((4, 32)), numpy.zeros((8, 32)), numpy.zeros(32)
        >>> lstm = fused_rnn.from_keras([kernel, recurrent_kernel, bias], "LSTM")
        >>> lstm
        LSTM(4, 8, batch_first=True)
    """
    if hasattr(source, "get_weights"):
        if kind is not None or bidirectional or reset_after is not None:
            raise TypeError("kind, bidirectional and reset_after are for arrays; a Keras layer knows its own")
        kind, directions = _read(source)
        reset_after = True
    else:
        arrays = list(source)
        count = 2 if bidirectional else 1
        if len(arrays) not in (2 * count, 3 * count):
            raise ValueError(f"source must hold 2 or 3 arrays for each direction, got {len(arrays)} for {count}")
        each = len(arrays) // count
        directions = [arrays[start : start + each] for start in range(0, len(arrays), each)]
    if kind is None or kind not in NAMES:
        raise ValueError(f"kind must be one of {', '.join(NAMES)}, got {kind!r}")
    gates: Kind = "LSTM" if kind.startswith("LSTM") else "GRU"
    weights = [_weights(gates, [torch.from_numpy(numpy.array(array)) for array in arrays], reset_after)
               for arrays in directions]  # fmt: skip
    if kind == gates:
        return layer_of(gates, weights, batch_first=True)
    if bidirectional:
        raise ValueError(f"bidirectional must be False for {kind}")
    return cell_of(gates, weights[0])


def _read(layer: Any) -> tuple[str, list[list[Any]]]:
    """Return the class of a Keras layer, that of its parts if it is Bidirectional, and the arrays of each direction."""
    name, config = type(layer).__name__, layer.get_config()
    if name == "Bidirectional":
        if config["merge_mode"] != "concat":
            raise ValueError(f"merge_mode must be 'concat', got {config['merge_mode']!r}")
        forward, backward = layer.forward_layer, layer.backward_layer
        if type(forward) is not type(backward):
            raise ValueError(f"both directions must be of one class: {type(forward)} and {type(backward)}")
        first, second = _checked(forward, backwards=False), _checked(backward, backwards=True)
        return type(forward).__name__, [first, second]
    return name, [_checked(layer, backwards=False)]


def _checked(layer: Any, backwards: bool) -> list[Any]:
    """Return the arrays of a Keras layer of one direction, if ours computes the same."""
    name, config = type(layer).__name__, layer.get_config()
    if name not in NAMES:
        raise ValueError(f"source must be a Keras {', '.join(NAMES)} or Bidirectional, got {name}")
    for key, required in {**REQUIRED, "go_backwards": backwards}.items():
        if config.get(key, required) != required:
            raise ValueError(f"{name} has {key}={config[key]!r}, but here it can only be {required!r}{_advice(key)}")
    arrays = list(layer.get_weights())
    if not arrays:
        raise ValueError(f"{name} has no weights yet: build it, or call it once")
    return arrays


def _advice(key: str) -> str:
    """What to do about a setting that has no counterpart."""
    if key in ("dropout", "recurrent_dropout"):
        return "; to do without, give source=layer.get_weights() and kind"
    if key == "go_backwards":
        return "; reverse the input in time, and give source=layer.get_weights() and kind"
    if key == "stateful":
        return "; pass the states from call to call, and give source=layer.get_weights() and kind"
    return "; fused_rnn.reference.gru computes this variant" if key == "reset_after" else ""


def _weights(kind: Kind, arrays: Sequence[Tensor], reset_after: bool | None) -> Weights:
    """Return one direction's weights as torch.nn has them."""
    order, (kernel, recurrent_kernel, *biases) = GATE_ORDER[kind], arrays
    weight_ih, weight_hh = reorder(kernel.T, order), reorder(recurrent_kernel.T, order)
    if kind == "GRU":
        if biases:
            reset_after = biases[0].dim() == 2
        if reset_after is None:
            raise ValueError("reset_after must be given for a GRU without biases")
        if not reset_after:
            raise ValueError(f"reset_after=False has no kernel{_advice('reset_after')}")
    if not biases:
        return weight_ih, weight_hh, None, None
    bias = biases[0] if kind == "GRU" else torch.stack([biases[0], torch.zeros_like(biases[0])])
    return weight_ih, weight_hh, reorder(bias[0], order), reorder(bias[1], order)
