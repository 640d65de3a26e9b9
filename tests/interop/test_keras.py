"""Layers and cells made from those of Keras compute what Keras does; where they cannot, an error says why."""

import os
from functools import partial
from typing import Any

import numpy
import pytest
import torch
from cases import CELLS, flatten, structure_of
from comparing import assert_accurate, assert_identical
from conversions import NONLINEARITIES
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from fused_rnn.keras import lengths_of

os.environ.setdefault("KERAS_BACKEND", "torch")
keras: Any = pytest.importorskip("keras", reason="Keras is not installed: pip install keras")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

GATED = ("LSTM", "GRU")
GENERATOR = torch.Generator().manual_seed(0)
INPUT = torch.randn(3, 5, 4, dtype=torch.float64, generator=GENERATOR)
LAYER = {"return_sequences": True, "return_state": True, "dtype": "float64"}


def filled(layer: Any, *shape: int) -> Any:
    """Build a Keras layer, and set all its weights and biases to random numbers."""
    layer.build(shape)
    generator = numpy.random.default_rng(1)
    layer.set_weights([generator.normal(size=weight.shape) for weight in layer.get_weights()])
    return layer


def tensors(values: Any) -> list[Tensor]:
    return [torch.from_numpy(keras.ops.convert_to_numpy(value)) for value in values]


def states_of(kind: str, states: list[Tensor]) -> list[Tensor]:
    """Return Keras's final states (for two directions h, c, h, c) in the form of torch.nn."""
    count = 2 if kind == "LSTM" else 1
    return [torch.stack(states[i::count]) for i in range(count)]


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", GATED)
def test_layer(kind: str, use_bias: bool) -> None:
    theirs = filled(getattr(keras.layers, kind)(6, use_bias=use_bias, **LAYER), 3, 5, 4)
    ours: Any = fused_rnn.from_keras(theirs)
    assert type(ours) is getattr(fused_rnn, kind)
    assert (ours.batch_first, ours.bias, next(ours.parameters()).dtype) == (True, use_bias, torch.float64)
    expected, *states = tensors(theirs(INPUT))
    output, final = ours(INPUT)
    assert_accurate(output, expected)
    final = final if kind == "LSTM" else [final]
    for actual, state in zip(final, states_of(kind, states), strict=True):
        assert_accurate(actual, state)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", GATED)
def test_bidirectional(kind: str, use_bias: bool) -> None:
    layer = getattr(keras.layers, kind)(6, use_bias=use_bias, **LAYER)
    theirs = filled(keras.layers.Bidirectional(layer, dtype="float64"), 3, 5, 4)
    expected, *states = tensors(theirs(INPUT))
    arrays: Any = {"source": theirs.get_weights(), "kind": kind, "bidirectional": True, "reset_after": True}
    for ours in (fused_rnn.from_keras(theirs), fused_rnn.from_keras(**arrays)):
        output, final = ours(INPUT)
        assert_accurate(output, expected)
        for actual, state in zip(final if kind == "LSTM" else [final], states_of(kind, states), strict=True):
            assert_accurate(actual, state)


@pytest.mark.parametrize("merge_mode", ["sum", "mul", "ave"])
@pytest.mark.parametrize("kind", [*GATED, "reset before"])
def test_merge_mode(kind: str, merge_mode: str) -> None:
    """Outputs are merged at every step; by default Keras merges the last output of each direction, its final h."""
    settings = {"reset_after": False} if kind == "reset before" else {}
    cls = getattr(keras.layers, "GRU" if settings else kind)
    theirs = filled(keras.layers.Bidirectional(cls(6, **settings, **LAYER), merge_mode=merge_mode), 3, 5, 4)
    last = keras.layers.Bidirectional(cls(6, dtype="float64", **settings), merge_mode=merge_mode)
    last.build((3, 5, 4))
    last.set_weights(theirs.get_weights())
    ours: Any = fused_rnn.from_keras(theirs)
    assert f"merge_mode='{merge_mode}'" in repr(ours)
    expected, *states = tensors(theirs(INPUT.float()))
    exact, final = ours(INPUT.float().double())
    peer, peer_final = ours.float()(INPUT.float())
    assert_accurate(expected.float(), exact, peer)
    finals, peers = (list(each) if kind == "LSTM" else [each] for each in (final, peer_final))
    for values, state, peer in zip(states_of(kind, states), finals, peers, strict=True):
        assert_accurate(values.float(), state, peer)
    merge = {"sum": lambda h: h[0] + h[1], "mul": lambda h: h[0] * h[1], "ave": lambda h: (h[0] + h[1]) / 2}[merge_mode]
    assert_accurate(tensors([last(INPUT.float())])[0].float(), merge(finals[0]), merge(peers[0]))


def test_merged_directions() -> None:
    """Padded, ragged and packed sequences give one result, and each mode is what its name says."""
    layer = fused_rnn.GRU(4, 6, batch_first=True, bidirectional=True).double()
    lengths = torch.tensor([5, 2, 3])
    both = layer(INPUT, lengths=lengths)[0].unflatten(2, (2, 6))
    for mode, expected in (("sum", both.sum(2)), ("mul", both.prod(2)), ("ave", both.mean(2))):
        merged: Any = fused_rnn.modules.MergedDirections(layer, mode)
        ragged, h_n = merged(INPUT, lengths=lengths)
        assert_accurate(ragged, expected)
        packed, again = merged(pack_padded_sequence(INPUT, lengths, batch_first=True, enforce_sorted=False))
        assert_accurate(pad_packed_sequence(packed, batch_first=True)[0], expected)
        assert_accurate(again, h_n)
    with pytest.raises(ValueError, match="merge_mode must be 'sum' or 'mul' or 'ave', got 'concat'"):
        fused_rnn.modules.MergedDirections(layer, "concat")
    with pytest.raises(ValueError, match="layer must be bidirectional"):
        fused_rnn.modules.MergedDirections(fused_rnn.GRU(4, 6), "sum")


@pytest.mark.parametrize("wrap", [torch.tensor, numpy.array])
@pytest.mark.parametrize("merge_mode", [None, "concat", "sum"])
def test_lengths_of_a_mask(merge_mode: str | None, wrap: Any) -> None:
    """Keras skips masked steps at the end of a sequence, and returns zeros there if asked to."""
    layer: Any = keras.layers.LSTM(6, zero_output_for_mask=True, return_sequences=True)
    theirs = filled(layer if merge_mode is None else keras.layers.Bidirectional(layer, merge_mode=merge_mode), 3, 5, 4)
    mask = [[True] * 5, [True, True, False, False, False], [False] * 5]
    lengths = lengths_of(wrap(mask))
    assert (lengths.tolist(), lengths.dtype) == ([5, 2, 0], torch.int64)
    (output,) = tensors([theirs(INPUT.float(), mask=torch.tensor(mask))])
    ours: Any = fused_rnn.from_keras(theirs)
    peer, _ = ours(INPUT.float(), lengths=lengths)
    assert_accurate(output, ours.double()(INPUT.float().double(), lengths=lengths)[0], peer)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[True, True], [False, True]], "in sequence 1 step 0 is masked and step 1 is not; move"),
        ([[True, False, True, False]], "in sequence 0 step 1 is masked and step 2 is not"),
        ([True, False], r"dimensions batch and time, got shape \[2\]"),
    ],
)
def test_masks_that_lengths_cannot_express(mask: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lengths_of(torch.tensor(mask))
    with pytest.raises(TypeError, match=r"mask must be boolean, got torch.int64"):
        lengths_of(torch.tensor(mask).long())


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn(nonlinearity: str, bidirectional: bool, use_bias: bool) -> None:
    """Keras multiplies float64 matrices in float32 here, so the errors of Keras are compared with ours in float32."""
    layer = keras.layers.SimpleRNN(
        6, activation=nonlinearity, use_bias=use_bias, return_sequences=True, return_state=True
    )
    theirs = filled(keras.layers.Bidirectional(layer) if bidirectional else layer, 3, 5, 4)
    input = INPUT.float()
    output, *states = tensors(theirs(input))
    arrays: Any = {"source": theirs.get_weights(), "kind": "RNN", "bidirectional": bidirectional}
    for ours in (fused_rnn.from_keras(theirs), fused_rnn.from_keras(**arrays, nonlinearity=nonlinearity)):
        assert type(ours) is fused_rnn.RNN
        assert (ours.batch_first, ours.bias, ours.nonlinearity) == (True, use_bias, nonlinearity)
        peer = ours(input)
        exact = ours.double()(input.double())
        for actual, *expected in zip((output, torch.stack(states)), exact, peer, strict=True):
            assert_accurate(actual, *expected)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cell(kind: str, use_bias: bool) -> None:
    """Keras multiplies float64 matrices in float32 here, so the errors of Keras are compared with ours in float32."""
    nonlinearity, name = NONLINEARITIES.get(kind), f"{kind.partition('_')[0]}Cell"
    make = partial(keras.layers.SimpleRNNCell, activation=nonlinearity) if nonlinearity else getattr(keras.layers, name)
    theirs = filled(make(6, use_bias=use_bias), 3, 4)
    ours: Any = fused_rnn.from_keras(theirs)
    assert type(ours) is getattr(fused_rnn, name)
    states = [torch.randn(3, 6, dtype=torch.float64) for _ in range(structure_of(kind).states)]
    input = INPUT[:, 0]

    def run(cell: Any, dtype: torch.dtype) -> list[Tensor]:
        hx = [state.float().to(dtype) for state in states]
        return flatten(cell(input.float().to(dtype), tuple(hx) if kind == "LSTM" else hx[0]))

    again = fused_rnn.from_keras(theirs.get_weights(), name, reset_after=True, nonlinearity=nonlinearity)
    assert_identical(dict(enumerate(run(again, torch.float32))), dict(enumerate(run(ours, torch.float32))))
    peer = run(ours, torch.float32)
    exact = run(ours.double(), torch.float64)
    _, actual = theirs(input.float(), [state.float() for state in states])
    for index, state in enumerate(tensors(actual)):
        assert_accurate(state, exact[index], peer[index])


@pytest.mark.parametrize("use_bias", [True, False])
def test_reset_before(use_bias: bool) -> None:
    """The GRU with the reset before the product: as a layer, bidirectional, as a cell, and from arrays."""
    settings: Any = {"reset_after": False, "use_bias": use_bias}
    layer = filled(keras.layers.GRU(6, **settings, **LAYER), 3, 5, 4)
    both = filled(keras.layers.Bidirectional(keras.layers.GRU(6, **settings, **LAYER), dtype="float64"), 3, 5, 4)
    cell = filled(keras.layers.GRUCell(6, **settings), 3, 4)
    known: Any = {} if use_bias else {"reset_after": False}
    for theirs, ours in (
        (layer, fused_rnn.from_keras(layer)),
        (layer, fused_rnn.from_keras(layer.get_weights(), "GRU", **known)),
        (both, fused_rnn.from_keras(both)),
    ):
        assert type(ours) is fused_rnn.modules.GRUResetBefore
        exact, peer = ours(INPUT)[0], ours.float()(INPUT.float())[0]
        assert_accurate(tensors(theirs(INPUT))[0].float(), exact, peer)
    ours_cell: Any = fused_rnn.from_keras(cell)
    assert type(ours_cell) is fused_rnn.modules.GRUCellResetBefore
    h = torch.randn(3, 6)
    peer = ours_cell(INPUT[:, 0].float(), h)
    exact = ours_cell.double()(INPUT[:, 0].float().double(), h.double())
    assert_accurate(tensors(cell(INPUT[:, 0].float(), [h])[1])[0], exact, peer)


def test_float32_and_defaults() -> None:
    """By default Keras returns only the last output."""
    theirs = filled(keras.layers.LSTM(6), 3, 5, 4)
    ours: Any = fused_rnn.from_keras(theirs)
    assert next(ours.parameters()).dtype == torch.float32
    (actual,) = tensors([theirs(INPUT.float())])
    peer = ours(INPUT.float())[1][0][0]
    assert_accurate(actual, ours.double()(INPUT.float().double())[1][0][0], peer)


def test_the_weights_are_copies() -> None:
    theirs = filled(keras.layers.GRU(6, **LAYER), 3, 5, 4)
    ours: Any = fused_rnn.from_keras(theirs)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.zero_()
    assert all(numpy.abs(weight).min() > 0 for weight in theirs.get_weights())


def test_an_rnn_has_tanh_by_default() -> None:
    for cls in (keras.layers.SimpleRNN, keras.layers.SimpleRNNCell):
        theirs = filled(cls(6), 3, 4) if "Cell" in cls.__name__ else filled(cls(6), 3, 5, 4)
        kind = cls.__name__.removeprefix("Simple")
        for ours in (fused_rnn.from_keras(theirs), fused_rnn.from_keras(theirs.get_weights(), kind)):
            assert ours.nonlinearity == "tanh"


@pytest.mark.parametrize("activation", ["sigmoid", "linear", None, keras.layers.ReLU(max_value=6)], ids=str)
@pytest.mark.parametrize("name", ["SimpleRNN", "SimpleRNNCell"])
def test_activations_without_counterpart(name: str, activation: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} has activation=.*, but here it can only be 'tanh' or 'relu'"):
        fused_rnn.from_keras(getattr(keras.layers, name)(6, activation=activation))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"activation": "relu"}, "activation='relu', but here it can only be 'tanh'"),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation='hard_sigmoid'"),
        ({"dropout": 0.1}, "dropout=0.1, .*; to do without"),
        ({"recurrent_dropout": 0.1}, "recurrent_dropout=0.1"),
        ({"stateful": True}, "stateful=True.*pass the states"),
        ({"go_backwards": True}, "go_backwards=True.*reverse the input"),
    ],
    ids=str,
)
def test_settings_without_counterpart(setting: dict[str, Any], message: str) -> None:
    layer = keras.layers.GRU(6, **setting)
    with pytest.raises(ValueError, match=message):
        fused_rnn.from_keras(layer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: keras.layers.LSTM(6), "no weights yet"),
        (lambda: keras.layers.SimpleRNN(6), "SimpleRNN has no weights yet"),
        (
            lambda: keras.layers.Dense(6),
            "must be a Keras LSTM, GRU, SimpleRNN, LSTMCell, GRUCell, SimpleRNNCell or Bidirectional, got Dense",
        ),
        (lambda: keras.layers.RNN(keras.layers.SimpleRNNCell(6)), "got RNN"),
        (lambda: keras.layers.SimpleRNN(6, dropout=0.1), "SimpleRNN has dropout=0.1.* kind and nonlinearity"),
        (
            lambda: keras.layers.Bidirectional(keras.layers.LSTM(6), merge_mode=None),
            "merge_mode must be 'concat' or 'sum' or 'mul' or 'ave', got None; .* the two halves of the layer's output",
        ),
        (
            lambda: keras.layers.Bidirectional(
                keras.layers.LSTM(6), backward_layer=keras.layers.GRU(6, go_backwards=True)
            ),
            "both directions must be of one class",
        ),
        (
            lambda: keras.layers.Bidirectional(
                keras.layers.GRU(6), backward_layer=keras.layers.GRU(6, reset_after=False, go_backwards=True)
            ),
            "both directions must .* have one reset_after",
        ),
        (
            lambda: keras.layers.Bidirectional(
                keras.layers.SimpleRNN(6),
                backward_layer=keras.layers.SimpleRNN(6, activation="relu", go_backwards=True),
            ),
            "both directions must .* one activation",
        ),
    ],
)
def test_layers_without_counterpart(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fused_rnn.from_keras(make())


def arrays(*shapes: tuple[int, ...]) -> list[numpy.ndarray]:
    return [numpy.ones(shape) for shape in shapes]


@pytest.mark.parametrize(
    ("source", "kwargs", "message"),
    [
        (arrays((4, 18), (6, 18)), {"kind": "GRU"}, "reset_after must be given"),
        (arrays((4, 24)), {"kind": "LSTM"}, "source must hold 2 or 3 arrays"),
        (arrays((4, 24), (6, 24)), {"kind": "LSTM", "bidirectional": True}, "for each direction, got 2 for 2"),
        (arrays((4, 24), (6, 24), (23,)), {"kind": "LSTM"}, "bias_ih_l0"),
        (arrays((4, 24), (6, 18)), {"kind": "LSTM"}, "weights must fit each other"),
        (arrays((4, 24), (6, 24)), {"kind": "RNN"}, "weights must fit each other"),
        (arrays((4, 6), (6, 6)), {"kind": "SimpleRNN"}, "kind must be one of LSTM, GRU, RNN, LSTMCell, "),
        (arrays((4, 6), (6, 6)), {"kind": "RNN", "nonlinearity": "elu"}, "must be 'tanh' or 'relu' for RNN, got 'elu'"),
        (arrays((4, 6), (6, 6)), {"kind": "RNNCell", "nonlinearity": "elu"}, "must be 'tanh' or 'relu' for RNNCell"),
        (arrays((4, 24), (6, 24)), {"kind": "LSTM", "nonlinearity": "tanh"}, "nonlinearity must be None for LSTM"),
        (arrays((4, 24), (6, 24)), {}, "kind must be one of"),
        (arrays((4, 24), (6, 24)) * 2, {"kind": "LSTMCell", "bidirectional": True}, "bidirectional must be False"),
    ],
)
def test_arrays_that_do_not_fit(source: list[numpy.ndarray], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fused_rnn.from_keras(source, **kwargs)


def test_a_layer_knows_its_kind() -> None:
    with pytest.raises(TypeError, match="a Keras layer knows its own"):
        fused_rnn.from_keras(keras.layers.LSTM(6), "LSTM")
    with pytest.raises(TypeError, match="a Keras layer knows its own"):
        fused_rnn.from_keras(keras.layers.SimpleRNN(6), nonlinearity="tanh")
