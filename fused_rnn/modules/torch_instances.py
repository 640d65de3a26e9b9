"""The layers again, as instances of torch.nn's layers too, for packages that ask ``isinstance(layer, torch.nn.LSTM)``.

The layers of this package are not subclasses of torch.nn's, because torch.compile refuses to trace every instance of
these. :func:`fused_rnn.convert` with ``keep_isinstance=True`` takes the classes here, which add nothing else.
"""

from typing import Any

from torch import nn

from fused_rnn.modules import gru, lstm, rnn


class LSTM(lstm.LSTM, nn.LSTM):
    """A :class:`fused_rnn.LSTM` that is a torch.nn.LSTM, too.

    Example:
        >>> import torch
        >>> from fused_rnn.modules.torch_instances import LSTM
        >>> isinstance(LSTM(4, 8), torch.nn.LSTM)
        True
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.LSTM.__init__(self, *args, **kwargs)


class GRU(gru.GRU, nn.GRU):
    """A :class:`fused_rnn.GRU` that is a torch.nn.GRU, too.

    Example:
        >>> import torch
        >>> from fused_rnn.modules.torch_instances import GRU
        >>> isinstance(GRU(4, 8), torch.nn.GRU)
        True
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.GRU.__init__(self, *args, **kwargs)


class RNN(rnn.RNN, nn.RNN):
    """A :class:`fused_rnn.RNN` that is a torch.nn.RNN, too.

    Example:
        >>> import torch
        >>> from fused_rnn.modules.torch_instances import RNN
        >>> isinstance(RNN(4, 8), torch.nn.RNN)
        True
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.RNN.__init__(self, *args, **kwargs)
