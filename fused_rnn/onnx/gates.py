"""The order in which ONNX lays the gates: i, o, f, c for an LSTM, z, r, h for a GRU, and the only one for an RNN."""

from fused_rnn.foreign import Kind

# Where ONNX's gates lie in torch.nn's order, and the other way round.
TO_ONNX: dict[Kind, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
FROM_ONNX = {kind: tuple(order.index(gate) for gate in range(len(order))) for kind, order in TO_ONNX.items()}
