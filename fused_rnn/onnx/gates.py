"""The order in which ONNX lays the gates: i, o, f, c for an LSTM, and z, r, h for a GRU."""

from fused_rnn.foreign import Kind

# Where ONNX's gates lie in torch.nn's order, and the other way round.
TO_ONNX: dict[Kind, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
FROM_ONNX: dict[Kind, tuple[int, ...]] = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
