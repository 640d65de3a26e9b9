"""Streams of characters read one at a time: a trained model that is served, with ordinary, frozen and int8 weights.

    python -m examples.streaming
    python -m examples.streaming --hidden 256 --num-layers 1 --streams 1 4 16

The model of characters from `examples.language_model` is trained, and then fed one character of each stream at a time,
the state carried from call to call, as a server does for many clients, or a detector for many sensors. Every way to do
so computes the same function: its perplexity on held-out text shows what rounded weights cost, and its microseconds a
step what they gain.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from matplotlib.ticker import LogLocator
from torch import Tensor, nn

import fused_rnn
from examples.common import COLOURS, Numbers, base_parser, make_figure, save_figure, train
from examples.language_model import LanguageModel, TextTask

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]
"""Codes `[1, streams]` and the state before them -> scores `[1, streams, tokens]` and the state after them."""

FUSED, FROZEN, INT8 = "fused", "frozen", "frozen, int8"
TORCH, TORCH_INT8, ONNX = "torch.nn", "torch.nn, int8", "ONNX Runtime"


def ways(network: LanguageModel, streams: int) -> dict[str, Step]:
    """Every way to serve a trained model, by name."""
    theirs, ours = with_layers_of(nn, network), with_layers_of(fused_rnn, network)
    steps: dict[str, Step] = {
        TORCH: theirs,
        TORCH_INT8: torch.ao.quantization.quantize_dynamic(theirs, {nn.LSTM, nn.GRU}, torch.qint8),
        FUSED: ours,
        FROZEN: fused_rnn.freeze(deepcopy(ours)),
        INT8: fused_rnn.freeze(deepcopy(ours), torch.int8),
    }
    if find_spec("onnx") is not None and find_spec("onnxruntime") is not None:
        steps[ONNX] = onnx_step(theirs, streams)
    return steps


def with_layers_of(library: Any, network: LanguageModel) -> LanguageModel:
    """A copy of a model, in evaluation mode, with the layers of torch.nn or of fused_rnn."""
    copy = deepcopy(network).eval()
    old: Any = copy.recurrent
    copy.recurrent = getattr(library, old.mode)(old.input_size, old.hidden_size, old.num_layers).eval()
    copy.recurrent.load_state_dict(old.state_dict())
    return copy


def zero_state(network: LanguageModel, streams: int) -> Any:
    """The state before the first character: h and c of an LSTM, h of a GRU."""
    recurrent: Any = network.recurrent
    zeros = torch.zeros(recurrent.num_layers, streams, recurrent.hidden_size)
    return (zeros, zeros) if recurrent.mode == "LSTM" else zeros


def onnx_step(network: LanguageModel, streams: int) -> Step:
    """The model in a session of ONNX Runtime, for one step of so many streams."""
    import onnxruntime

    state = zero_state(network, streams)
    is_pair = isinstance(state, tuple)
    names = ["codes", *(["h", "c"] if is_pair else ["h"])]
    arguments = (torch.zeros(1, streams, dtype=torch.int64), state)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "step.onnx")
        torch.onnx.export(network, arguments, path, input_names=names, opset_version=17, dynamo=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def step(codes: Tensor, state: Any) -> tuple[Tensor, Any]:
        given = (codes, *state) if is_pair else (codes, state)
        feed = {name: value.numpy() for name, value in zip(names, given, strict=True)}
        scores, *new = (torch.from_numpy(value) for value in session.run(None, feed))
        return scores, tuple(new) if is_pair else new[0]

    return step


@torch.inference_mode()
def serve(task: TextTask, step: Step, streams: int, steps: int) -> tuple[float, Tensor]:
    """Feed held-out text to a model, one character of each stream at a time.

    Args:
        task: The trained model and its text.
        step: The way to serve it.
        streams: How many streams are read at once, from places of equal distance in the text.
        steps: How many characters of each.

    Returns:
        The median time of a call in microseconds, and the loss of each character in nats, `[steps, streams]`.
    """
    windows = [task.held_out.window(number)[0] for number in range(task.held_out.windows)]
    text = torch.cat(windows).t().flatten()
    starts = torch.arange(streams) * ((len(text) - steps - 1) // streams)
    codes = text[starts + torch.arange(steps + 1).unsqueeze(1)]  # [steps + 1, streams]
    state, times, losses = zero_state(task.network, streams), [], []
    for t in range(steps):
        begin = perf_counter()
        scores, state = step(codes[t : t + 1], state)
        times.append(perf_counter() - begin)
        losses.append(nn.functional.cross_entropy(scores[0], codes[t + 1], reduction="none"))
    return 1e6 * median(times), torch.stack(losses)


def compare(task: TextTask, options: argparse.Namespace) -> dict[int, dict[str, tuple[float, float]]]:
    """For each number of streams and way, microseconds a step and perplexity."""
    results: dict[int, dict[str, tuple[float, float]]] = {}
    for streams in options.streams:
        results[streams] = {}
        for name, step in ways(task.network, streams).items():  # each alone, so that no other way takes its caches
            microseconds, losses = serve(task, step, streams, options.steps)
            results[streams][name] = microseconds, losses.mean().exp().item()
    return results


def show(results: dict[int, dict[str, tuple[float, float]]]) -> None:
    """Print the table of all ways."""
    for streams, by_way in results.items():
        print(f"\n{streams} stream{'s' if streams > 1 else ''}: microseconds for a character of each, perplexity")
        for name, (microseconds, perplexity) in by_way.items():
            print(f"  {name:<14} {microseconds:8.1f} {perplexity:8.3f}")


def draw_picture(results: dict[int, dict[str, tuple[float, float]]], path: Path) -> None:
    """Draw the time of a step by number of streams, and what each way loses in perplexity against torch.nn."""
    names = list(next(iter(results.values())))
    figure = make_figure(9, 3.4)
    times, losses = figure.subplots(1, 2)
    width = 0.8 / len(names)
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        places = [group + (i - (len(names) - 1) / 2) * width for group in range(len(results))]
        times.bar(places, [by_way[name][0] for by_way in results.values()], width, color=colour, label=name)
        worse = [100 * (by_way[name][1] / by_way[TORCH][1] - 1) for by_way in results.values()]
        losses.bar(places, worse, width, color=colour)
    for axis in (times, losses):
        axis.set_xticks(range(len(results)), [str(streams) for streams in results])
        axis.set_xlabel("streams")
    times.set(yscale="log", ylabel="microseconds a step")
    times.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    times.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside upper center", ncols=len(names), fontsize=8)
    losses.set(ylabel="perplexity against torch.nn in %")
    losses.axhline(0, color="black", linewidth=0.6)
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("streaming", __doc__, epochs=1, batch=32, learning_rate=3e-3)
    add = parser.add_argument_group("text and model").add_argument
    add("--text", type=Path, help="a UTF-8 file (default: the topics of Python's own documentation)")
    add("--length", type=int, help="how many characters of it to read (all)")
    add("--time", type=int, default=64, help="characters a step of training (%(default)s)")
    add("--cell", choices=("LSTM", "GRU"), default="LSTM", help="the layers (%(default)s)")
    add("--hidden", type=int, default=512, help="size of a character's vector and of the state (%(default)s)")
    add("--num-layers", type=int, default=2, help="how many layers are stacked (%(default)s)")
    add("--dropout", type=float, default=0.3, help="between the layers (%(default)s)")
    add("--clip", type=float, default=1.0, help="largest norm of the gradients (%(default)s)")
    add = parser.add_argument_group("streaming").add_argument
    add("--streams", type=int, nargs="+", default=[1, 8, 32], help="how many are served at once (%(default)s)")
    add("--steps", type=int, default=1000, help="characters of each stream (%(default)s)")
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, TextTask]:
    """The one model, of characters."""
    return {"characters": TextTask(options, "characters")}


def main(arguments: list[str] | None = None) -> Numbers:
    """Run the command line: train, serve in every way, and compare."""
    options = make_parser().parse_args(arguments)
    tasks = make_tasks(options)
    train(tasks, options)
    results = compare(tasks["characters"], options)
    show(results)
    draw_picture(results, options.picture)
    most = results[options.streams[-1]]
    return {"perplexity": most[FUSED][1], "perplexity of int8": most[INT8][1]}


if __name__ == "__main__":
    main()
