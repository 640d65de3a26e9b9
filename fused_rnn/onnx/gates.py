"""The order of the gates: i, o, f, c for an LSTM of ONNX, z, r, h for a GRU; an RNN has only one."""

from typing import cast

from fused_rnn.foreign import Kind
from fused_rnn.functional.onnx_export import NODES

# For each gate in torch.nn's order, its index in ONNX's.
FROM_ONNX = {
    cast(Kind, node.op_type): tuple(node.gates.index(gate) for gate in range(len(node.gates)))
    for node in NODES.values()
}
