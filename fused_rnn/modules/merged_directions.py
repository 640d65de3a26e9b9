"""The layer ``MergedDirections``, which merges the outputs of the two directions of another layer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from fused_rnn.functional.recurrent import Sequences
from fused_rnn.modules.fx import leaf

MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": torch.add,
    "mul": torch.mul,
    "ave": lambda forward, backward: (forward + backward) / 2,
}
"""How the outputs of both directions are merged, by Keras's names."""


class MergedDirections(torch.nn.Module):
    """A bidirectional layer whose output is the sum, the product or the average of its two directions.

    Keras's Bidirectional calls this ``merge_mode``. The final states are those of the layer, one for each direction.

    Args:
        layer: one of this package's recurrent layers, bidirectional.
        merge_mode: ``"sum"``, ``"mul"`` or ``"ave"``.

    Raises:
        ValueError: ``layer`` has one direction, or ``merge_mode`` is unknown.

    Example:
        >>> import torch, fused_rnn
        >>> from fused_rnn.modules import MergedDirections
        >>> output, h_n = MergedDirections(fused_rnn.GRU(4, 8, bidirectional=True), "sum")(torch.randn(5, 3, 4))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 8]), torch.Size([2, 3, 8]))
    """

    def __init__(self, layer: torch.nn.RNNBase, merge_mode: str) -> None:
        super().__init__()
        if not layer.bidirectional:
            raise ValueError("layer must be bidirectional")
        if merge_mode not in MERGES:
            raise ValueError(f"merge_mode must be {' or '.join(map(repr, MERGES))}, got {merge_mode!r}")
        self.layer = layer
        self.merge_mode = merge_mode

    def forward(
        self,
        input: Sequences,
        hx: Any = None,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | None = None,
        reset_states: Any = None,
    ) -> tuple[Sequences, Any]:
        """Run sequences through the layer, and merge the outputs of its directions.

        Args:
            input: as for the layer.
            hx: the initial state, as for the layer; None for zero.
            lengths: the steps of each sequence, as for the layer; None for all of them.
            resets: before which steps the states are replaced, as for the layer; None for no step.
            reset_states: what replaces the states there, as for the layer; None for zero.

        Returns:
            The output in the form of the input, its last dimension that of one direction, and the layer's final state.
        """
        options = {"lengths": lengths, "resets": resets, "reset_states": reset_states}
        if isinstance(input, Proxy) or isinstance(hx, Proxy):
            node = leaf(self, MergedDirections.forward, input, hx, **options)
            if node is not None:
                return node
        output, final = self.layer(input, hx, **options)
        merged: Any = (
            self._merge(output) if isinstance(output, Tensor) else output._replace(data=self._merge(output.data))
        )
        return merged, final

    def _merge(self, output: Tensor) -> Tensor:
        forward, backward = output.chunk(2, dim=-1)
        return MERGES[self.merge_mode](forward, backward)

    def extra_repr(self) -> str:
        """Return the merge mode."""
        return f"merge_mode={self.merge_mode!r}"
