"""Times RecurrentPPO of sb3-contrib and the recurrent modules of torchrl, as they are and on our layers.

`python -m benchmarks.reinforcement_learning` needs both packages, which `make ecosystem` installs, and writes JSON. It
times the policy and the modules of docs/reinforcement-learning.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from benchmarks.machine import describe_machine, machine_name
from benchmarks.problem import FUSED, CheckError
from benchmarks.results import Result, Run
from benchmarks.timing import Function, Measurement, time_together

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reinforcement-learning.md"
TIME, BATCH, INPUT, HIDDEN = 128, 16, 64, 128
FRACTIONS = (0.0, 0.01)
TOLERANCE = 1e-4  # of losses and gradients, relative to the largest one


def code_of_the_page() -> dict[str, Any]:
    """The names that the code of the page defines."""
    names: dict[str, Any] = {"__name__": PAGE.stem}
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), names)
    return names


def begins(fraction: float) -> Tensor:
    """Where episodes begin, `[batch, time]`: at the first step, and at random inside."""
    starts = torch.rand(BATCH, TIME, generator=torch.Generator().manual_seed(0)) < fraction
    starts[:, 0] = True
    return starts


def policies(names: dict[str, Any], fraction: float) -> dict[str, Function]:
    """The learner of RecurrentPPO: `evaluate_actions` for a batch of sequences, and its backward pass."""
    import gymnasium
    from sb3_contrib.common.recurrent.type_aliases import RNNStates
    from stable_baselines3.common.utils import ConstantSchedule

    space, actions = gymnasium.spaces.Box(-1, 1, (INPUT,)), gymnasium.spaces.Discrete(4)
    sequence, starts = torch.randn(BATCH * TIME, INPUT), begins(fraction).flatten().float()
    chosen, zeros = torch.arange(BATCH * TIME) % 4, (torch.zeros(1, BATCH, HIDDEN),) * 2

    def learner(cls: Any, state: dict[str, Tensor] | None = None) -> tuple[Any, Function]:
        policy = cls(space, actions, ConstantSchedule(1e-3), lstm_hidden_size=HIDDEN)
        if state is not None:
            policy.load_state_dict(state)

        def learn() -> dict[str, Tensor]:
            values, log_probability, entropy = policy.evaluate_actions(
                sequence, chosen, RNNStates(zeros, zeros), starts
            )
            loss = values.square().mean() - log_probability.mean() - entropy.mean()
            return _gradients(loss, policy)

        return policy, learn

    theirs, run_theirs = learner(names["MlpLstmPolicy"])
    _, run_ours = learner(names["FusedLstmPolicy"], theirs.state_dict())
    return {FUSED: run_ours, "sb3-contrib": run_theirs}


def modules(names: dict[str, Any], kind: str, fraction: float) -> dict[str, Function]:
    """Torchrl's module over a batch of rollouts, and its backward pass."""
    from tensordict import TensorDict

    states = ["h", "c"] if kind == "LSTM" else ["h"]
    keys = {"in_keys": ["input", *states], "out_keys": ["out", *(("next", state) for state in states)]}
    data = {"input": torch.randn(BATCH, TIME, INPUT), "is_init": begins(fraction).unsqueeze(-1)}
    data |= {state: torch.randn(BATCH, TIME, 1, HIDDEN) for state in states}

    def learner(prefix: str, state: dict[str, Tensor] | None = None, **options: Any) -> tuple[Any, Function]:
        module = names[f"{prefix}{kind}Module"](INPUT, HIDDEN, default_recurrent_mode=True, **keys, **options)
        if state is not None:
            module.load_state_dict(state)
        return module, lambda: _gradients(module(TensorDict(dict(data), [BATCH, TIME]))["out"].square().mean(), module)

    theirs, run_theirs = learner("")
    state = theirs.state_dict()
    ours, scan = learner("Fused", state)[1], learner("", state, recurrent_backend="scan")[1]
    return {FUSED: ours, "torchrl, pad": run_theirs, "torchrl, scan": scan}


def _gradients(loss: Tensor, module: Any) -> dict[str, Tensor]:
    weights = dict(module.named_parameters())
    return {"loss": loss, **dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))}


def check(name: str, functions: dict[str, Function]) -> None:
    """Compare what all compute with the package."""
    expected: Any = list(functions.values())[1]()
    for peer, function in functions.items():
        found: Any = function()
        for tensor, value in expected.items():
            difference = ((found[tensor] - value).abs().max() / value.abs().max().clamp(min=1e-6)).item()
            if not difference <= TOLERANCE:
                raise CheckError(f"{name}: {tensor} of {peer} differs by {difference:.1e}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 if results differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reinforcement_learning", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each case (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="the folder of the JSON")
    options = parser.parse_args(arguments)
    names, console, run = code_of_the_page(), Console(highlight=False), Run(describe_machine())
    makers: dict[str, Callable[[float], dict[str, Function]]] = {
        "RecurrentPPO": lambda fraction: policies(names, fraction),
        "LSTMModule": lambda fraction: modules(names, "LSTM", fraction),
        "GRUModule": lambda fraction: modules(names, "GRU", fraction),
    }
    for name, make in makers.items():
        for fraction in FRACTIONS:
            torch.manual_seed(0)
            functions = make(fraction)
            check(name, functions)
            samples = time_together(functions, options.seconds)
            times = {peer: Measurement.of(each) for peer, each in samples.items()}
            result = Result(f"{name}, {100 * fraction:g} % resets", "", "training", 0, 0.0, times)
            run.results.append(result)
            shown = [f"{peer} {1e3 * time.median:.1f} ms" for peer, time in times.items()]
            ratios = [f"{ratio:.2f}x" for ratio in result.ratios().values()]
            console.print(f"{result.group}: {', '.join(shown)}; {', '.join(ratios)}", soft_wrap=True)
    path = options.output / f"{machine_name(run.machine)}-reinforcement-learning.json"
    run.save(path)
    console.print(f"written: {path}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
