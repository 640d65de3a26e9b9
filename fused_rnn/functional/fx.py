"""Makes the functions of this package nodes of torch.fx, as those of torch.nn.functional are."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from torch.fx import Proxy
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def node_of_graph(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let torch.fx record calls of a function instead of tracing what happens inside.

    ``torch.fx.wrap`` would do so too, but what it puts in the place of the function during a trace, which torch.export
    makes as well, cannot be called with a PackedSequence.

    Args:
        function: a function of :mod:`fused_rnn.functional`.

    Returns:
        The function with that behaviour, which torch.fx finds under its name in :mod:`fused_rnn.functional`.
    """

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        # Outside of a trace, which is the usual case, there is nothing to look for.
        if is_fx_symbolic_tracing() and (proxies := [*_proxies(args), *_proxies(kwargs.values())]):
            tracer: Any = proxies[0].tracer
            return tracer.create_proxy("call_function", call, args, kwargs)
        return function(*args, **kwargs)

    call.__module__ = "fused_rnn.functional"
    return call


def _proxies(arguments: Iterable[Any]) -> Iterator[Proxy]:
    """Yield those of some arguments, and of the sequences among them, that stand for a value of a graph."""
    for argument in arguments:
        if isinstance(argument, Proxy):
            yield argument
        elif isinstance(argument, (tuple, list)):
            yield from (item for item in argument if isinstance(item, Proxy))
