"""The order of the gates in ONNX: i, o, f, c for an LSTM, z, r, h for a GRU; an RNN has only one."""

from fused_rnn.foreign import Kind

# For each gate in ONNX's order, its index in torch.nn's; and the inverse.
TO_ONNX: dict[Kind, tuple[int, ...]] = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
FROM_ONNX = {kind: tuple(order.index(gate) for gate in range(len(order))) for kind, order in TO_ONNX.items()}
