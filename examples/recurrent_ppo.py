"""A recurrent policy by proximal policy optimisation: rollouts of several episodes, without a loop over time.

    python -m examples.recurrent_ppo
    python -m examples.recurrent_ppo --layer torch --epochs 30
    python -m examples.recurrent_ppo --chunk 32 --burn-in 8

An agent sees in the first step of an episode whether the prize lies left or right, walks down a corridor of random
length, and has to turn the right way at its end (the T-maze of Bakker, "Reinforcement Learning with Long Short-Term
Memory", 2002). A policy that sees only the present observation turns the right way every other time. The policies are
trained by PPO (Schulman et al., "Proximal Policy Optimization Algorithms", 2017) with the advantages of Schulman et
al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation", 2015. The learner runs its layer once
over a rollout, `[time, environments]`, with a reset at the first step of each episode. With `--layer torch` it runs
torch.nn's layer step by step, since that cannot reset a state. With `--chunk` the learner takes rollouts in pieces. A
piece begins with the states that the policy had when it acted, and with `--burn-in` its first steps only bring these up
to date (Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement Learning", 2019). The picture
shows the return during training. At the end the learner's speed is printed, beside that of other ways to reset a state.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn.functional import mse_loss

from examples.common import COLOURS, Numbers, Task, base_parser, format_numbers, make_figure, save_figure, train
from examples.layers import CHOICES, loop_over_cell, split_and_pad

FORWARD, LEFT, RIGHT = range(3)
OBSERVED = 3  # the cue, whether the corridor ends here, and whether the episode begins here
SHORTEST, LONGEST, LIMIT = 3, 8, 24  # of a corridor, and of an episode, in steps
DISCOUNT, TRACE, CLIP, ENTROPY = 0.98, 0.95, 0.2, 0.01
UPDATES = 4  # of the policy for each rollout
ROLLOUTS = 5  # in an epoch
HELD_OUT_SEED = 10**9


class TMazes:
    """A batch of mazes; one whose episode has ended begins another one by itself.

    Args:
        batch: The number of mazes.
        seed: The seed of cues and lengths.

    Example:
        >>> mazes = TMazes(2, seed=0)
        >>> mazes.observe().shape
        torch.Size([2, 3])
        >>> reward, done = mazes.step(torch.tensor([FORWARD, LEFT]))  # who turns too early stays where he is
        >>> mazes.position.tolist(), bool(reward[0] == 0), bool(reward[1] < 0), done.tolist()
        ([1, 0], True, True, [False, False])
    """

    def __init__(self, batch: int, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self.position, self.length, self.age = torch.zeros(3, batch, dtype=torch.long)
        self.cue = torch.zeros(batch)
        self._begin(torch.ones(batch, dtype=torch.bool))

    def _begin(self, which: Tensor) -> None:
        batch = len(which)
        lengths = torch.randint(SHORTEST, LONGEST + 1, (batch,), generator=self._generator)
        cues = 2.0 * torch.randint(2, (batch,), generator=self._generator) - 1
        self.length, self.cue = torch.where(which, lengths, self.length), torch.where(which, cues, self.cue)
        self.position, self.age = (values.masked_fill(which, 0) for values in (self.position, self.age))

    def observe(self) -> Tensor:
        """What the agents see, `[batch, 3]`."""
        begins = self.age == 0
        return torch.stack([self.cue * begins, self.position == self.length, begins], dim=1).float()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Take actions `[batch]`; returns rewards and whether an episode ended with this step, both `[batch]`."""
        at_end, turns = self.position == self.length, action != FORWARD
        right_way = (action == RIGHT) == (self.cue > 0)
        prize = torch.where(right_way, 1.0, -1.0) * (at_end & turns)
        reward = prize - 0.1 * (at_end != turns)  # a turn in the corridor, or the wall behind its end
        self.position = self.position + (~at_end & ~turns).long()
        self.age = self.age + 1
        done = (at_end & turns) | (self.age == LIMIT)
        self._begin(done)
        return reward, done


class Policy(nn.Module):
    """A recurrent layer, or a linear one in its place, and linear maps to the actions' logits and to the value.

    Args:
        recurrent: The layer, from `OBSERVED` values to `hidden_size`; None for a policy without memory.
        hidden_size: The size of what the logits are computed from.
    """

    def __init__(self, recurrent: nn.Module | None, hidden_size: int) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.encode = None if recurrent else nn.Linear(OBSERVED, hidden_size)
        self.logits, self.value = nn.Linear(hidden_size, 3), nn.Linear(hidden_size, 1)

    def forward(self, seen: Tensor, begins: Tensor, state: Any = None) -> tuple[Tensor, Tensor, Any]:
        """Logits `[time, batch, 3]`, values `[time, batch]` and the last state.

        Args:
            seen: Observations `[time, batch, OBSERVED]`.
            begins: Whether an episode begins with a step, `[time, batch]`.
            state: The state before the first step; None for zero.
        """
        if self.recurrent is not None:
            output, state = self.recurrent(seen, state, resets=begins)
        else:
            assert self.encode is not None
            output = self.encode(seen).tanh()
        return self.logits(output), self.value(output)[..., 0], state

    def states_of(self, state: Any, batch: int) -> Sequence[Tensor]:
        """The tensors of a state, each `[1, batch, hidden_size]`, of which there are none without memory."""
        if self.recurrent is None:
            return ()
        if state is None:
            state = (torch.zeros(1, batch, self.value.in_features),) * (2 if self.recurrent.mode == "LSTM" else 1)
        return state if isinstance(state, tuple) else (state,)

    def state_of(self, states: Sequence[Tensor]) -> Any:
        """The state of these tensors, which is zero if there are none."""
        return None if not states else tuple(states) if len(states) > 1 else states[0]


class Rollout(NamedTuple):
    """What some environments have seen and done, each `[time, batch]`."""

    seen: Tensor  # [time, batch, OBSERVED]
    begins: Tensor
    action: Tensor
    log_probability: Tensor
    advantage: Tensor
    target: Tensor  # of the value
    returns: Tensor  # of the episodes that have ended, [episodes]
    states: Sequence[Tensor]  # that the policy had before each step, each [time, 1, batch, hidden_size]

    def cut(self, steps: int) -> Rollout:
        """The same in pieces, `[steps, pieces * batch]`, whose states are those before their first steps."""

        def pieces(values: Tensor) -> Tensor:
            return values.unflatten(0, (-1, steps)).transpose(0, 1).flatten(1, 2)

        return self._of_steps(pieces, [state[::steps].transpose(0, 1).flatten(1, 2) for state in self.states])

    def after(self, steps: int) -> Rollout:
        """The same without its first steps."""
        return self._of_steps(lambda values: values[steps:], [state[steps:] for state in self.states])

    def _of_steps(self, function: Callable[[Tensor], Tensor], states: Sequence[Tensor]) -> Rollout:
        changed: dict[str, Any] = {name: function(getattr(self, name)) for name in self._fields[:-2]}
        return self._replace(**changed, states=states)


@torch.no_grad()
def play(policy: Policy, batch: int, time: int, seed: int) -> Rollout:
    """Let a policy act in new environments, and estimate the advantages of what it did."""
    mazes, state, steps = TMazes(batch, seed), None, []
    generator = torch.Generator().manual_seed(seed)
    begins, total, returns = torch.ones(batch, dtype=torch.bool), torch.zeros(batch), []
    states: list[Sequence[Tensor]] = []
    for _ in range(time):
        seen = mazes.observe()
        states.append(policy.states_of(state, batch))
        logits, value, state = policy(seen[None], begins[None], state)
        probabilities = logits[0].softmax(1)
        action = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        reward, done = mazes.step(action)
        steps.append((seen, begins, action, probabilities.log()[torch.arange(batch), action], value[0], reward))
        total = total + reward
        returns.append(total[done])
        # An episode that ends with this step makes the next one the first of another.
        total, begins = total.masked_fill(done, 0), done
    seen, first, action, log_probability, value, reward = map(torch.stack, zip(*steps, strict=True))
    _, last_value, _ = policy(mazes.observe()[None], begins[None], state)
    advantage, following = torch.zeros(time + 1, batch), torch.cat([value[1:], last_value])
    for t in reversed(range(time)):
        goes_on = ~(first[t + 1] if t + 1 < time else begins)
        error = reward[t] + DISCOUNT * following[t] * goes_on - value[t]
        advantage[t] = error + DISCOUNT * TRACE * advantage[t + 1] * goes_on
    stored = [torch.stack(values) for values in zip(*states, strict=True)]
    target = advantage[:-1] + value
    return Rollout(seen, first, action, log_probability, advantage[:-1], target, torch.cat(returns), stored)


def objective(policy: Policy, rollout: Rollout, burn_in: int = 0) -> Tensor:
    """The objective of PPO on a rollout, or on the pieces of one, whose first `burn_in` steps only find a state."""
    state = policy.state_of(rollout.states)
    if burn_in:
        with torch.no_grad():
            _, _, state = policy(rollout.seen[:burn_in], rollout.begins[:burn_in], state)
        rollout = rollout.after(burn_in)
    logits, value, _ = policy(rollout.seen, rollout.begins, state)
    choice = Categorical(logits=logits)
    advantage = (rollout.advantage - rollout.advantage.mean()) / (rollout.advantage.std() + 1e-8)
    ratio = (choice.log_prob(rollout.action) - rollout.log_probability).exp()
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
    return 0.5 * mse_loss(value, rollout.target) - surrogate.mean() - ENTROPY * choice.entropy().mean()


class PPOTask(Task):
    """A policy, and the rollouts that it is trained on."""

    unit = "steps of environments"

    def __init__(self, options: argparse.Namespace, policy: Policy) -> None:
        super().__init__(policy, ROLLOUTS * UPDATES * options.batch, options, clip=0.5)
        self.policy = policy
        self._environments, self._time = options.batch, options.time
        self._chunk, self._burn_in = options.chunk or options.time, options.burn_in
        if self._time % self._chunk or self._burn_in >= self._chunk:
            raise ValueError("--chunk must divide --time, and --burn-in must be less")
        self.units_per_step = self._environments * self._time
        self.rollout: Rollout | None = None

    def loss(self, step: int) -> Tensor:
        """The objective of PPO, which after `UPDATES` steps is that of a new rollout."""
        if step % UPDATES == 0 or self.rollout is None:
            rollout = play(self.policy, self._environments, self._time, 10**6 * self.seed + step)
            self.rollout = rollout.cut(self._chunk)
        return objective(self.policy, self.rollout, self._burn_in)

    def evaluate(self) -> Numbers:
        """The mean return of episodes in environments that are not trained on."""
        return {"return": play(self.policy, 256, 2 * LIMIT, HELD_OUT_SEED).returns.mean().item()}

    def state_dict(self) -> dict[str, Any]:
        """The state from which the training can be resumed, with the rollout that it is at."""
        return super().state_dict() | {"rollout": None if self.rollout is None else list(self.rollout)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a `state_dict`."""
        super().load_state_dict(state)
        self.rollout = None if state["rollout"] is None else Rollout(*state["rollout"])


class Way(nn.Module):
    """A recurrent layer that resets its states in another way than ours.

    Args:
        run: Returns the output for `(input, resets)`.
        module: The module with the weights.
    """

    def __init__(self, run: Callable[[Any, Tensor, Tensor], Tensor], module: nn.Module) -> None:
        super().__init__()
        self._run, self.module = run, module

    def forward(self, input: Tensor, state: None, resets: Tensor) -> tuple[Tensor, None]:
        """Run a sequence, `[time, batch, size]`, from states of zero."""
        return self._run(self.module, input, resets), None


def torchrl_layer(hidden: int) -> nn.Module:
    """Torchrl's LSTMModule with torch.nn's LSTM."""
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule

    keys = {"in_keys": ["seen", "h", "c"], "out_keys": ["out", ("next", "h"), ("next", "c")]}
    layer = LSTMModule(OBSERVED, hidden, default_recurrent_mode=True, **keys)

    def run(module: Any, input: Tensor, resets: Tensor) -> Tensor:
        data = TensorDict({"seen": input.transpose(0, 1), "is_init": resets.T[..., None]}, resets.T.shape)
        return module(data)["out"].transpose(0, 1)

    return Way(run, layer)


def learner_speeds(time: int, batch: int, hidden: int, rounds: int = 7) -> dict[str, float]:
    """How many steps of environments the learner of an LSTM takes in a second, with each way to reset its states."""
    ways = {
        "fused_rnn": CHOICES["fused"].lstm(OBSERVED, hidden),
        "a loop over torch.nn's cell": Way(loop_over_cell, nn.LSTMCell(OBSERVED, hidden)),
        "torch.nn's layer, split and padded": Way(split_and_pad, nn.LSTM(OBSERVED, hidden)),
    }
    if find_spec("torchrl"):
        ways["torchrl's LSTMModule"] = torchrl_layer(hidden)
    policies = {name: Policy(layer, hidden) for name, layer in ways.items()}
    # From states of zero, which all ways can begin with.
    rollout = play(policies["fused_rnn"], batch, time, seed=0)._replace(states=())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, policy in policies.items():
            start = perf_counter()
            objective(policy, rollout).backward()
            seconds[name].append(perf_counter() - start)
    return {name: time * batch / median(each) for name, each in seconds.items()}


def draw_picture(tasks: Mapping[str, PPOTask], path: Path) -> None:
    """Draw the return of each policy by the steps of its environments."""
    figure = make_figure(7, 4)
    axis = figure.subplots()
    for (name, task), colour in zip(tasks.items(), COLOURS, strict=False):
        steps = [epoch * ROLLOUTS * task.units_per_step for epoch in range(1, 1 + len(task.scores))]
        axis.plot(steps, [numbers["return"] for numbers in task.scores], ".-", color=colour, label=name)
    axis.axhline(0, color="0.5", linewidth=0.8, label="turns at random")
    axis.set(title="T-maze", xlabel="steps of environments", ylabel="mean return of held-out episodes")
    axis.legend(fontsize=8)
    save_figure(figure, path)


def make_parser() -> argparse.ArgumentParser:
    """The options on the command line."""
    parser = base_parser("recurrent_ppo", __doc__, epochs=10, batch=64, learning_rate=6e-3)
    add = parser.add_argument_group("data and models").add_argument
    add("--time", type=int, default=64, help="steps of a rollout (%(default)s)")
    add("--hidden", type=int, default=32, help="size of the state (%(default)s)")
    add("--chunk", type=int, help="steps of the pieces that the learner takes; a whole rollout if not given")
    add("--burn-in", type=int, default=0, help="of these, how many only find a state, without gradients (%(default)s)")
    return parser


def make_tasks(options: argparse.Namespace) -> dict[str, PPOTask]:
    """A policy with a GRU, one with an LSTM, and one without memory."""
    layers = CHOICES[options.layer]
    makers: dict[str, Callable[[], nn.Module | None]] = {
        "GRU": lambda: layers.gru(OBSERVED, options.hidden),
        "LSTM": lambda: layers.lstm(OBSERVED, options.hidden),
        "no memory": lambda: None,
    }
    tasks = {}
    for name, make in makers.items():
        torch.manual_seed(options.seed)
        tasks[name] = PPOTask(options, Policy(make(), options.hidden))
    return tasks


def main(arguments: list[str] | None = None) -> Numbers:
    """Train all policies, and draw."""
    options = make_parser().parse_args(arguments)
    tasks = make_tasks(options)
    train(tasks, options)
    draw_picture(tasks, options.picture)
    numbers = {f"return of {name}": task.scores[-1]["return"] for name, task in tasks.items()}
    print(format_numbers(numbers))
    print("steps that the learner takes in a second:")
    for name, speed in learner_speeds(options.time, options.batch, options.hidden).items():
        print(f"  {name}: {speed:,.0f}")
    return numbers


if __name__ == "__main__":
    main()
