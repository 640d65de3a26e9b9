"""Every example with tiny sizes: it learns, resumes, stops at Ctrl-C, and is the same with either choice of layers."""

import os
import signal
import subprocess
import sys
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.problem import CheckError
from benchmarks.training import COMPARED_STEPS, make_pairs, train_pair
from examples import EXAMPLES, language_model, pixelcnn, seq2seq, sequence_shapes, text
from examples.common import STOPPED, Numbers, Task, base_parser, train

# The command line of each example, with which it takes a few seconds.
TINY = {
    "language_model": "--length 60000 --epochs 3 --batch 8 --time 32 --hidden 48 --draw 5",
    "streaming": "--length 60000 --epochs 3 --batch 8 --time 32 --hidden 48 --streams 1 3 --steps 60",
    "long_dependencies": "--time 16 --epochs 6 --sequences 1280 --hidden 24 --batch 16",
    "classifier": "--epochs 4 --sentences 600 --hidden 48 --batch 8",
    "seq2seq": "--kinds plain attention --dates 1500 --epochs 5 --hidden 64 --batch 32",
    "sequence_shapes": "--epochs 4 --sequences 1600 --hidden 48 --batch 16 --shapes read compare",
    "time_series": "--epochs 15 --time 66",
    "pixelcnn": "--epochs 10 --channels 32 --blocks 2 --images 500 --batch 16",
    "recurrent_ppo": "--epochs 7",
    "codec": "--epochs 5 --channels 32 --blocks 2 --images 500 --batch 16 --compress 5",
}

# The options that are also needed for all models of an example.
EVERY_MODEL = {
    "seq2seq": ["--kinds", *seq2seq.KINDS],
    "sequence_shapes": ["--shapes", *sequence_shapes.SHAPES],
}


def run(example: str, folder: Path, *more: str) -> Numbers:
    """Run an example with tiny sizes, with its files in `folder`."""
    files = ["--checkpoint", str(folder / "checkpoint.pt"), "--picture", str(folder / "pictures" / "picture.png")]
    return import_module(f"examples.{example}").main([*TINY[example].split(), *files, *more])


def test_every_example_is_listed() -> None:
    files = {path.stem for path in Path(pixelcnn.__file__).parent.glob("[a-z]*.py")}
    assert files == set(EXAMPLES) | {"common", "eye", "images", "layers", "text"}
    assert set(TINY) == set(EXAMPLES)


def is_right(example: str, numbers: Numbers) -> bool:
    """Whether the result with tiny sizes shows that the model has learned."""
    match example:
        case "language_model":
            return numbers["perplexity of words"] < 250 and numbers["perplexity of characters"] < 14
        case "streaming":
            return numbers["perplexity"] < 30 and abs(numbers["perplexity of int8"] / numbers["perplexity"] - 1) < 0.02
        case "long_dependencies":
            return numbers["error of LSTM"] < 0.05 and numbers["error of GRU"] < 0.05 < numbers["error of RNN"]
        case "classifier":
            return 0.5 < numbers["F1 forward only"] < numbers["F1 both directions"] - 0.05
        case "seq2seq":
            return numbers["accuracy of attention"] > 0.5 > numbers["accuracy of plain"]
        case "sequence_shapes":
            return all(value > 0.3 for value in numbers.values())
        case "time_series":
            return numbers["error"] < numbers["error of the last cycle"]
        case "pixelcnn":
            return numbers["bits per dimension"] < numbers["histogram of each pixel"] < numbers["uniform"]
        case "recurrent_ppo":
            with_memory = min(numbers["return of GRU"], numbers["return of LSTM"])
            return numbers["return of no memory"] < 0.2 < 0.6 < with_memory
        case "codec":
            # Few images: the arithmetic coder ends with up to two words of 32 bits, which are shared by 5 * 64 pixels.
            coded, modelled = numbers["bits per dimension"], numbers["of the model"]
            return numbers["outputs that differ"] == 0 and modelled - 0.1 < coded < modelled + 0.3 < numbers["PNG"]
    raise AssertionError(f"there is no result to expect of {example}")


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_learns_and_draws(example: str, tmp_path: Path) -> None:
    numbers = run(example, tmp_path)
    assert is_right(example, numbers), numbers
    assert (tmp_path / "pictures" / "picture.png").read_bytes().startswith(b"\x89PNG")
    # A resumed run has nothing left to train, so it must give the same numbers from the checkpoint.
    assert run(example, tmp_path, "--resume") == pytest.approx(numbers)


@pytest.mark.parametrize("example", EXAMPLES)
def test_losses_are_the_same_with_either_layers(example: str) -> None:
    pairs = make_pairs(example, [*TINY[example].split(), *EVERY_MODEL.get(example, [])])
    assert pairs
    for pair in pairs:
        result = train_pair(pair, seconds=0)
        assert result.steps == COMPARED_STEPS
        assert result.difference <= result.tolerance


def test_networks_that_explode_have_no_pair() -> None:
    pairs = make_pairs("long_dependencies", TINY["long_dependencies"].split())
    assert [pair.name for pair in pairs] == ["RNN", "LSTM", "GRU"]


def test_other_losses_are_found() -> None:
    (pair,) = make_pairs("time_series", TINY["time_series"].split())
    with torch.no_grad():
        next(pair.tasks["fused"].model.parameters()).mul_(1.01)
    with pytest.raises(CheckError, match="time_series, sunspots: the losses"):
        train_pair(pair, seconds=0)


class Line(Task):
    """Fits a linear function to noise, with dropout; sends Ctrl-C during step `stop_at`, if given."""

    def __init__(self, options: Namespace, stop_at: int | None = None) -> None:
        torch.manual_seed(options.seed)
        self.inputs = torch.randn(100, 3)
        self.stop_at = stop_at
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        super().__init__(model, 100, options, clip=1.0, decay=True)

    def loss(self, step: int) -> Tensor:
        if step == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        rows = self.inputs[self.batch_of(step)]
        return (self.model(rows)[:, 0] - rows.sum(1)).square().mean()

    def evaluate(self) -> Numbers:
        return {"sum": sum(parameter.sum().item() for parameter in self.model.parameters())}


def line_options(folder: Path, *arguments: str) -> Namespace:
    parser = base_parser("line", "A line.", epochs=3, batch=10, learning_rate=0.01)
    return parser.parse_args([*arguments, "--checkpoint", str(folder / "line.pt")])


@pytest.mark.parametrize("stop_at", [0, 7, 9, 10, 29])
def test_stopped_training_goes_on_as_if_it_had_not_stopped(stop_at: int, tmp_path: Path) -> None:
    straight = Line(line_options(tmp_path))
    train({"line": straight}, line_options(tmp_path))
    stopped = Line(line_options(tmp_path), stop_at)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        train({"line": stopped}, line_options(tmp_path))
    assert end.value.code == STOPPED
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.steps_done == stop_at + 1
    resumed = Line(line_options(tmp_path))
    train({"line": resumed}, line_options(tmp_path, "--resume"))
    assert (resumed.losses, resumed.norms, resumed.scores) == (straight.losses, straight.norms, straight.scores)
    assert len(straight.losses) == 30
    assert len(straight.scores) == 3


def test_resuming_needs_a_checkpoint(tmp_path: Path) -> None:
    options = line_options(tmp_path, "--resume")
    with pytest.raises(FileNotFoundError, match="--resume: there is no checkpoint"):
        train({"line": Line(options)}, options)


def test_batch_must_fit() -> None:
    options = base_parser("line", "A line.", epochs=3, batch=101, learning_rate=0.01).parse_args([])
    with pytest.raises(ValueError, match="--batch must not exceed the 100 examples"):
        Line(options)


def test_every_epoch_sees_every_example_once_in_another_order(tmp_path: Path) -> None:
    line = Line(line_options(tmp_path))
    epochs = [torch.cat([line.batch_of(10 * epoch + step) for step in range(10)]) for epoch in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(100)) for epoch in epochs)
    assert not torch.equal(*epochs)


def test_carried_state_is_resumed(tmp_path: Path) -> None:
    options = language_model.make_parser().parse_args([*TINY["language_model"].split(), "--tokens", "characters"])
    straight, resumed = (language_model.make_tasks(options)["characters"] for _ in range(2))
    for _ in range(3):
        straight.step()
    resumed.load_state_dict(straight.state_dict())
    assert resumed.step() == straight.step()


@pytest.mark.parametrize("example", EXAMPLES)
def test_help_says_how_it_is_called(example: str) -> None:
    text = import_module(f"examples.{example}").make_parser().format_help()
    assert f"python -m examples.{example}" in text
    assert "--layer {fused,torch}" in text


def test_example_is_a_command() -> None:
    command = [sys.executable, "-m", "examples.time_series", "--help"]
    assert "sunspots" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_held_out_words_are_unknown() -> None:
    options = language_model.make_parser().parse_args(["--tokens", "words", "--hidden", "8"])
    task = language_model.make_tasks(options)["words"]
    everything = text.load_text()
    training = text.split_tokens(everything[: int(len(everything) * 0.9)], "words")
    assert set(task.vocabulary.tokens) - set(training) == {text.UNKNOWN}


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_text_is_drawn_the_same_from_the_same_seed_and_is_never_unknown(temperature: float) -> None:
    options = language_model.make_parser().parse_args([*TINY["language_model"].split(), "--tokens", "words"])
    task = language_model.make_tasks(options)["words"]
    texts = [task.continue_text("The value of", 20, temperature, seed) for seed in (3, 3, 4)]
    assert texts[0] == texts[1]
    assert (texts[0] == texts[2]) == (temperature == 0)
    assert texts[0].startswith("The value of ")
    assert text.UNKNOWN not in texts[0]


def test_completed_images_keep_what_was_given() -> None:
    options = pixelcnn.make_parser().parse_args(TINY["pixelcnn"].split())
    task = pixelcnn.make_tasks(options)["digits"]
    task.model.eval()
    images = task.images.held_out[:4]
    drawn = pixelcnn.draw(task.model, images, rows=4, temperature=1.0, seed=0)
    assert torch.equal(drawn[:, :, :4], images[:, :, :4])
    # The values from the first drawn row on are not read.
    blank = torch.cat([images[:, :, :4], torch.zeros_like(images[:, :, 4:])], dim=2)
    assert torch.equal(drawn, pixelcnn.draw(task.model, blank, rows=4, temperature=1.0, seed=0))
