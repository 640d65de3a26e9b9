"""Makes layers and cells of this package from those of Keras."""

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Tensor

from fused_rnn.foreign import Cell, Kind, Layer, Network, Weights, cell_of, layer_of, reorder
from fused_rnn.modules import MergedDirections
from fused_rnn.modules.merged_directions import MERGES

# For each gate in torch.nn's order, its index in Keras's: i, f, g, o are Keras's i, f, c, o; r, z, n are from z, r, h.
GATE_ORDER: dict[Kind, tuple[int, ...]] = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "RNN": (0,)}
LAYERS: dict[str, Kind] = {kind: kind for kind in GATE_ORDER}
CELLS: dict[str, Kind] = {f"{kind}Cell": kind for kind in GATE_ORDER}
# The name of our class for each class of Keras. Keras's RNN is no counterpart of ours: it is a layer around any cell.
NAMES = {f"Simple{name}" if kind == "RNN" else name: name for name, kind in (LAYERS | CELLS).items()}
NONLINEARITIES = ("tanh", "relu")
# The accepted values of a Keras layer's settings, with which our layer computes the same. A setting may be missing.
ACCEPTED: dict[str, tuple[Any, ...]] = {
    "activation": ("tanh",),
    "recurrent_activation": ("sigmoid",),
    "dropout": (0,),
    "recurrent_dropout": (0,),
    "stateful": (False,),
    "time_major": (False,),
}


def from_keras(
    source: Any,
    kind: str | None = None,
    *,
    bidirectional: bool = False,
    reset_after: bool | None = None,
    nonlinearity: str | None = None,
) -> Layer | MergedDirections | Cell:
    """Make a layer or cell of this package from one of Keras, or from its weights.

    The result computes what Keras's layer does with ``return_sequences`` and ``return_state``; the last output alone,
    which Keras returns by default, is ``h_n``. The result is ``batch_first``, as Keras is. In place of a mask the
    caller gives ``lengths``, which :func:`lengths_of` makes from a mask; outputs past the end of a sequence are then
    zero, as with Keras's ``zero_output_for_mask``. Where Keras has one bias, ``bias_hh`` is zero; training changes
    both.

    Args:
        source: a built Keras LSTM, GRU, SimpleRNN, LSTMCell, GRUCell or SimpleRNNCell, or a Bidirectional around one of
            the layers; or the arrays that its ``get_weights()`` returns: for each direction
            ``kernel [input_size, gates * hidden_size]``, ``recurrent_kernel [hidden_size, gates * hidden_size]`` and,
            unless ``use_bias=False``, ``bias``.
        kind: for arrays, ``"LSTM"``, ``"GRU"``, ``"RNN"``, ``"LSTMCell"``, ``"GRUCell"`` or ``"RNNCell"``.
        bidirectional: for arrays, whether there are two directions.
        reset_after: for arrays of a GRU without biases, Keras's ``reset_after``, which the arrays do not show.
        nonlinearity: for arrays of an RNN, ``"tanh"``, the default, or ``"relu"``: Keras's ``activation``.

    Returns:
        A layer or cell with a copy of the weights, in their dtype. A GRU with ``reset_after=False`` becomes a
        :class:`fused_rnn.modules.GRUResetBefore`, or its cell, for which there is no kernel. A Bidirectional with the
        ``merge_mode`` "sum", "mul" or "ave" becomes a :class:`fused_rnn.modules.MergedDirections` around a layer.

    Raises:
        ValueError: the layer is none of these or is not built, or it computes something else, because of other
            activations, dropout, ``stateful``, ``go_backwards``, or ``merge_mode=None``. To ignore such a setting, for
            example dropout, give the arrays instead of the layer.
        TypeError: one of the other arguments is given with a layer, whose own settings they are.

    Example:
        >>> import numpy, torch, fused_rnn
        >>> kernel, recurrent_kernel, bias = numpy.zeros((4, 32)), numpy.zeros((8, 32)), numpy.zeros(32)
        >>> lstm = fused_rnn.from_keras([kernel, recurrent_kernel, bias], "LSTM")
        >>> lstm
        LSTM(4, 8, batch_first=True)
    """
    merge_mode = None
    if hasattr(source, "get_weights"):
        if kind is not None or bidirectional or reset_after is not None or nonlinearity is not None:
            raise TypeError(
                "kind, bidirectional, reset_after and nonlinearity are for arrays; a Keras layer knows its own"
            )
        (name, reset_after, activation), directions, merge_mode = _read(source)
        kind, nonlinearity = NAMES[name], activation if name.startswith("Simple") else None
    else:
        directions = _split(list(source), 2 if bidirectional else 1)
    network = _network(kind, directions[0], reset_after, nonlinearity)
    weights = [
        _weights(network.kind, [torch.from_numpy(numpy.array(each)) for each in arrays]) for arrays in directions
    ]
    if kind in LAYERS:
        layer = layer_of(network, weights, batch_first=True)
        return layer if merge_mode is None else MergedDirections(layer, merge_mode)
    if bidirectional:
        raise ValueError(f"bidirectional must be False for {kind}")
    return cell_of(network, weights[0])


def lengths_of(mask: Any) -> Tensor:
    """Return the lengths of the sequences of a batch from a mask of Keras.

    Keras skips a masked step anywhere: the state stays as it is. Lengths can express only steps that are masked at the
    end of a sequence, as after ``pad_sequences(..., padding="post")``.

    Args:
        mask: ``[batch, time]``, boolean, a tensor or an array: true where a step counts.

    Returns:
        ``[batch]``, int64, on the device of the mask: how many steps of each sequence count, to be given as
        ``lengths``.

    Raises:
        ValueError: the mask has not two dimensions, or a step counts after one that does not, be it a gap in a sequence
            or padding before it.
        TypeError: the mask is not boolean.

    Example:
        >>> import torch
        >>> from fused_rnn.keras import lengths_of
        >>> lengths_of(torch.tensor([[True, True, True], [True, False, False]]))
        tensor([3, 1])
    """
    mask = torch.as_tensor(mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}")
    if mask.dim() != 2:
        raise ValueError(f"mask must have the dimensions batch and time, got shape {list(mask.shape)}")
    resumes = (mask[:, 1:] & ~mask[:, :-1]).nonzero()
    if len(resumes):
        sequence, step = resumes[0].tolist()
        raise ValueError(
            "mask must be true for the first steps of each sequence and false for all others, as lengths can express "
            f"nothing else, but in sequence {sequence} step {step} is masked and step {step + 1} is not; move the "
            'steps that count to the front of each sequence, for example by pad_sequences(..., padding="post")'
        )
    return mask.sum(1)


def _split(arrays: list[Any], count: int) -> list[list[Any]]:
    """Split the arrays into those of each of ``count`` directions."""
    if len(arrays) not in (2 * count, 3 * count):
        raise ValueError(f"source must hold 2 or 3 arrays for each direction, got {len(arrays)} for {count}")
    each = len(arrays) // count
    return [arrays[start : start + each] for start in range(0, len(arrays), each)]


def _network(name: str | None, arrays: list[Any], reset_after: bool | None, nonlinearity: str | None) -> Network:
    """Return the network that a layer or cell of class ``name`` computes, given the arrays of one direction."""
    kind = (LAYERS | CELLS).get(name or "")
    if kind is None:
        raise ValueError(f"kind must be one of {', '.join(LAYERS | CELLS)}, got {name!r}")
    if kind == "GRU" and len(arrays) == 3:
        reset_after = arrays[2].ndim == 2
    if kind == "GRU" and reset_after is None:
        raise ValueError("reset_after must be given for a GRU without biases")
    if nonlinearity is not None and (kind != "RNN" or nonlinearity not in NONLINEARITIES):
        allowed = NONLINEARITIES if kind == "RNN" else (None,)
        raise ValueError(f"nonlinearity must be {_one_of(allowed)} for {name}, got {nonlinearity!r}")
    return Network(kind, bool(reset_after), nonlinearity or NONLINEARITIES[0])


def _read(layer: Any) -> tuple[tuple[str, bool, Any], list[list[Any]], str | None]:
    """Return a Keras layer's variant (see :func:`_variant`), the arrays of each direction, and how these are merged.

    They are merged by one of :data:`fused_rnn.modules.merged_directions.MERGES`, or concatenated, which is None.
    """
    if type(layer).__name__ != "Bidirectional":
        return _variant(layer), [_checked(layer, backwards=False)], None
    merge_mode = layer.get_config()["merge_mode"]
    if merge_mode != "concat" and merge_mode not in MERGES:
        raise ValueError(
            f"merge_mode must be {_one_of(['concat', *MERGES])}, got {merge_mode!r}; for the outputs of both "
            "directions give source=layer.get_weights(), kind and bidirectional=True: they are the two halves of the "
            "layer's output"
        )
    forward, backward = layer.forward_layer, layer.backward_layer
    variants = _variant(forward), _variant(backward)
    if variants[0] != variants[1]:
        raise ValueError(
            f"both directions must be of one class and have one reset_after and one activation, got {variants}"
        )
    arrays = [_checked(forward, backwards=False), _checked(backward, backwards=True)]
    return variants[0], arrays, None if merge_mode == "concat" else merge_mode


def _variant(layer: Any) -> tuple[str, bool, Any]:
    """Return the class, ``reset_after`` and activation of a Keras layer, which determine the network.

    A GRU that has no setting ``reset_after``, from before Keras 2.1.3, resets before the recurrent product.
    """
    config = layer.get_config()
    return type(layer).__name__, bool(config.get("reset_after", False)), config.get("activation")


def _checked(layer: Any, backwards: bool) -> list[Any]:
    """Return the arrays of a Keras layer of one direction, or raise an error if ours cannot compute the same."""
    name, config = type(layer).__name__, layer.get_config()
    if name not in NAMES:
        raise ValueError(f"source must be a Keras {', '.join(NAMES)} or Bidirectional, got {name}")
    expected, arguments = {**ACCEPTED, "go_backwards": (backwards,)}, "source=layer.get_weights() and kind"
    if name.startswith("Simple"):
        expected["activation"], arguments = NONLINEARITIES, "source=layer.get_weights(), kind and nonlinearity"
    for key, accepted in expected.items():
        if config.get(key, accepted[0]) not in accepted:
            advice = _advice(key, arguments)
            raise ValueError(f"{name} has {key}={config[key]!r}, but here it can only be {_one_of(accepted)}{advice}")
    arrays = list(layer.get_weights())
    if not arrays:
        raise ValueError(f"{name} has no weights yet: build it, or call it once")
    return arrays


def _one_of(values: Sequence[Any]) -> str:
    return " or ".join(map(repr, values))


def _advice(key: str, arguments: str) -> str:
    """Advice on a setting that has no counterpart; ``arguments`` are those to give instead of the layer."""
    if key in ("dropout", "recurrent_dropout"):
        return f"; to do without, give {arguments}"
    if key == "go_backwards":
        return f"; reverse the input in time, and give {arguments}"
    if key == "stateful":
        return f"; pass the states from call to call, and give {arguments}"
    return ""


def _weights(kind: Kind, arrays: Sequence[Tensor]) -> Weights:
    """Return one direction's weights in the layout of torch.nn."""
    order, (kernel, recurrent_kernel, *biases) = GATE_ORDER[kind], arrays
    weight_ih, weight_hh = reorder(kernel.T, order), reorder(recurrent_kernel.T, order)
    if not biases:
        return weight_ih, weight_hh, None, None
    bias = biases[0] if biases[0].dim() == 2 else torch.stack([biases[0], torch.zeros_like(biases[0])])
    return weight_ih, weight_hh, reorder(bias[0], order), reorder(bias[1], order)
