"""Makes layers and cells from those of Keras."""

from collections.abc import Sequence
from typing import Any, get_args

import numpy
import torch
from torch import Tensor

from fused_rnn.foreign import Kind, Weights, cell_of, layer_of, reorder
from fused_rnn.modules import GRU, LSTM, GRUCell, GRUCellResetBefore, GRUResetBefore, LSTMCell

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
}
Result = LSTM | GRU | GRUResetBefore | LSTMCell | GRUCell | GRUCellResetBefore


def from_keras(
    source: Any, kind: str | None = None, *, bidirectional: bool = False, reset_after: bool | None = None
) -> Result:
    """Make a layer or cell of this package from one of Keras, or from its weights.

    The result computes what Keras's layer does when it returns all its sequences and states; its last output alone,
    Keras's default, is ``h_n``. It is ``batch_first``, as Keras is. Masking is for the caller to do, with
    ``lengths``. Where Keras has one bias, ``bias_hh`` is zero; in training both learn.

    Args:
        source: a Keras LSTM, GRU, LSTMCell or GRUCell, or a Bidirectional LSTM or GRU, once it is built; or the arrays
            that its ``get_weights()`` returns: for each direction ``kernel [input_size, gates * hidden_size]``,
            ``recurrent_kernel [hidden_size, gates * hidden_size]`` and, unless ``use_bias=False``, ``bias``.
        kind: for arrays, ``"LSTM"``, ``"GRU"``, ``"LSTMCell"`` or ``"GRUCell"``.
        bidirectional: for arrays, whether there are two directions.
        reset_after: for arrays of a GRU without biases, where nothing else tells, Keras's ``reset_after``.

    Returns:
        A layer or cell with a copy of the weights, in their dtype. A GRU with ``reset_after=False`` becomes a
        :class:`fused_rnn.modules.GRUResetBefore`, or a cell like it, for which there is no kernel.

    Raises:
        ValueError: the layer is none of these or is not built, or computes something else: other activations, dropout
            inside the step, ``stateful``, ``go_backwards``, or a ``merge_mode`` other than "concat". To leave out what
            matters in training alone, such as dropout, give the arrays instead of the layer.
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
        kind, directions, reset_after = _read(source)
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
    weights = [_weights(gates, [torch.from_numpy(numpy.array(each)) for each in arrays]) for arrays in directions]
    if gates == "GRU" and len(directions[0]) == 3:
        reset_after = directions[0][2].ndim == 2
    if gates == "GRU" and reset_after is None:
        raise ValueError("reset_after must be given for a GRU without biases")
    if kind == gates:
        return layer_of(gates, weights, batch_first=True, reset_after=bool(reset_after))
    if bidirectional:
        raise ValueError(f"bidirectional must be False for {kind}")
    return cell_of(gates, weights[0], bool(reset_after))


def _read(layer: Any) -> tuple[str, list[list[Any]], bool]:
    """Return the class of a Keras layer or of its directions, the arrays of each direction, and ``reset_after``."""
    name, config = type(layer).__name__, layer.get_config()
    if name == "Bidirectional":
        if config["merge_mode"] != "concat":
            raise ValueError(f"merge_mode must be 'concat', got {config['merge_mode']!r}")
        forward, backward = layer.forward_layer, layer.backward_layer
        variants = [(type(each).__name__, _reset_after(each)) for each in (forward, backward)]
        if variants[0] != variants[1]:
            raise ValueError(f"both directions must be of one class and have one reset_after, got {variants}")
        return variants[0][0], [_checked(forward, backwards=False), _checked(backward, backwards=True)], variants[0][1]
    return name, [_checked(layer, backwards=False)], _reset_after(layer)


def _reset_after(layer: Any) -> bool:
    """Where a Keras GRU resets; those before Keras 2.1.3 know but one place."""
    return bool(layer.get_config().get("reset_after", False))


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
    return ""


def _weights(kind: Kind, arrays: Sequence[Tensor]) -> Weights:
    """Return one direction's weights as torch.nn has them."""
    order, (kernel, recurrent_kernel, *biases) = GATE_ORDER[kind], arrays
    weight_ih, weight_hh = reorder(kernel.T, order), reorder(recurrent_kernel.T, order)
    if not biases:
        return weight_ih, weight_hh, None, None
    bias = biases[0] if biases[0].dim() == 2 else torch.stack([biases[0], torch.zeros_like(biases[0])])
    return weight_ih, weight_hh, reorder(bias[0], order), reorder(bias[1], order)
