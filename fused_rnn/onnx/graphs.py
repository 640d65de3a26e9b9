"""Finds nodes in an ONNX model, also in the branches and loops of its graph, and evaluates constants."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy

from fused_rnn.onnx.gates import FROM_ONNX

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

STANDARD = ("", "ai.onnx")
# Nodes of other kinds that compute, or may compute, a recurrence. Loop and Scan are standard, the others are not.
LOOPS = ("Loop", "Scan")
RECURRENT = re.compile("LSTM|GRU|RNN")


class Located(NamedTuple):
    """A node of a model, and where it is."""

    node: NodeProto
    path: str
    """The names of the nodes and graphs around it and its own, such as ``"if_1/then_branch/lstm"``."""
    scope: tuple[GraphProto, ...]
    """The graphs around it, the outermost first, whose values it can use."""

    @property
    def is_layer(self) -> bool:
        """Whether it is one of the standard's LSTM, GRU or RNN."""
        return self.node.op_type in FROM_ONNX and self.node.domain in STANDARD

    @property
    def is_recurrent(self) -> bool:
        """Whether it computes, or may compute, a recurrence."""
        if self.node.domain in STANDARD:
            return self.is_layer or self.node.op_type in LOOPS
        return RECURRENT.search(self.node.op_type) is not None


def label(node: NodeProto) -> str:
    """Return the name of a node, or that of its first output if it has none."""
    return node.name or next(filter(None, node.output), "")


def without_functions(model: ModelProto) -> ModelProto:
    """Return the model with its functions inlined, so that all nodes and their constants are in its graph."""
    if not model.functions:
        return model
    from onnx.inliner import inline_local_functions

    return inline_local_functions(model)


def locate(model: ModelProto, node: str | NodeProto | None) -> Located:
    """Return the LSTM, GRU or RNN node that ``node`` names or is; see :func:`fused_rnn.from_onnx`.

    Raises:
        ValueError: there is none, or more than one.
    """
    nodes = list(_walk(model.graph))
    layers = [each for each in nodes if each.is_layer]
    found = layers
    if isinstance(node, str):
        by_name = [each for each in layers if node in (each.node.name, each.node.output[0])]
        found = [each for each in layers if each.path == node] or by_name
    elif node is not None:
        found = [each for each in layers if each.node == node]
    if len(found) == 1:
        return found[0]
    got = node if node is None or isinstance(node, str) else label(node)
    message = f"node must name one LSTM, GRU or RNN of the model, which are: {_paths(layers)}; got {got!r}"
    if node is not None and found:
        outputs = ", ".join(repr(each.node.output[0]) for each in found)
        message += f", which several are: {_paths(found)}; their first outputs are: {outputs}"
    if others := [each for each in nodes if each.is_recurrent and not each.is_layer]:
        named = ", ".join(f"{'.'.join(filter(None, (node.domain, node.op_type)))} {path!r}" for node, path, _ in others)
        message += f". Recurrent nodes of other kinds, which cannot be read, are: {named}"
    raise ValueError(message)


def constant(model: ModelProto, scope: tuple[GraphProto, ...], name: str) -> numpy.ndarray | None:
    """Return the constant value called ``name``, or None if there is none or it depends on the model's inputs.

    Args:
        model: the model.
        scope: the graphs in which the name is looked up, the outermost first.
        name: the name; "" stands for an input that a node does not have.
    """
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    needed, nodes = {name}, []
    for node in (node for graph in reversed(scope) for node in reversed(graph.node)):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_inputs_of(node))
    values = {each.name: each for graph in scope for each in graph.initializer if each.name in needed}
    if not name or needed - values.keys() - {""} - {output for node in nodes for output in node.output}:
        return None
    if name in values:
        return numpy_helper.to_array(values[name])
    result = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes[::-1], "constant", [], result, list(values.values()))
    (value,) = ReferenceEvaluator(helper.make_model(graph, opset_imports=model.opset_import)).run(None, {})
    return numpy.asarray(value)


def _walk(graph: GraphProto, prefix: str = "", outer: tuple[GraphProto, ...] = ()) -> Iterator[Located]:
    """Yield all nodes of a graph, and after each those of the graphs inside it."""
    scope = (*outer, graph)
    for node in graph.node:
        path = prefix + label(node)
        yield Located(node, path, scope)
        for name, inner in _graphs_of(node):
            yield from _walk(inner, f"{path}/{name}/", scope)


def _graphs_of(node: NodeProto) -> Iterator[tuple[str, GraphProto]]:
    """Yield the graphs inside a node, such as the branches of an If, with the names of their attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.name, attribute.g
        for index, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}_{index}", graph


def _inputs_of(node: NodeProto) -> set[str]:
    """Return the names of all values that a node reads, also those that only the graphs inside it read."""
    names = set(node.input)
    for _, graph in _graphs_of(node):
        own = {each.name for each in (*graph.input, *graph.initializer)}
        own.update(output for inner in graph.node for output in inner.output)
        names.update(each.name for each in graph.output if each.name not in own)
        names.update(name for inner in graph.node for name in _inputs_of(inner) if name not in own)
    return names


def _paths(nodes: list[Located]) -> str:
    return ", ".join(repr(each.path) for each in nodes) or "none"
