"""Makes the modules of this package leaves of torch.fx: one node of a graph, as the modules of torch.nn are."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Proxy


def leaf(module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Record a call that torch.fx traces as one node that calls the module.

    torch.fx takes a module for a leaf if its class is defined in torch.nn, and traces ``forward`` of all others. So
    each ``forward`` of this package calls this function if it is given a Proxy. In this way every tracer finds leaves,
    those of other packages too, and nothing in torch is changed.

    Args:
        module: the module that is called.
        forward: the ``forward`` that is running.
        args: its positional arguments; those at the end that are None are left out.
        kwargs: its keyword arguments; those that are None or False are left out.

    Returns:
        The value of the node; or None where a call of the module would do too much: because its forward hooks have
        been traced already, because its class overrides ``forward`` and what that adds is traced, or because the module
        itself is what is traced. Then ``forward`` continues, and the function of :mod:`fused_rnn.functional` that it
        calls becomes the node.
    """
    tracer: Any = next(arg.tracer for arg in args if isinstance(arg, Proxy))
    hooks = module._forward_hooks or module._forward_pre_hooks
    if hooks or type(module).forward is not forward or module is tracer.root:
        return None
    given = list(args)
    while given[-1] is None:
        given.pop()
    options = {name: value for name, value in kwargs.items() if value is not None and value is not False}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), tuple(given), options)
