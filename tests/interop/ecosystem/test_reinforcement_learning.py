"""The policy and the modules of docs/reinforcement-learning.md compute what those of the packages do, in one call."""

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch
from comparing import assert_all_accurate, assert_identical, differentiate
from models import BATCH, TIME, randn, recurrent_ppo
from torch import Tensor

import fused_rnn
from benchmarks.reinforcement_learning import code_of_the_page

pytestmark = pytest.mark.ecosystem


@cache
def page() -> dict[str, Any]:
    """Return the names that the code of the page defines."""
    return code_of_the_page()


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    page()  # its modules are in float32
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def layers_called(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of time steps with which recurrent layers are called, which grow during a test."""
    called: list[int] = []
    forward = fused_rnn.LSTM.forward

    def call(self: Any, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        called.append(len(input))
        return forward(self, input, *args, **kwargs)

    monkeypatch.setattr(fused_rnn.LSTM, "forward", call)
    return called


def beginnings() -> Tensor:
    """Return where episodes begin, ``[batch, time]``: nowhere, at first steps, inside and one step after another."""
    begins = torch.zeros(BATCH, TIME, dtype=torch.bool)
    begins[:2, 0] = begins[1, 5] = begins[1, 6] = begins[2, 7] = begins[2, TIME - 1] = True
    return begins


@pytest.mark.parametrize("options", [{}, {"n_lstm_layers": 2}, {"shared_lstm": True, "enable_critic_lstm": False}])
def test_the_policy_of_recurrent_ppo(options: dict[str, Any], layers_called: list[int]) -> None:
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    theirs = recurrent_ppo(**options).policy.double()
    ours = recurrent_ppo(page()["FusedLstmPolicy"], **options).policy.double()
    ours.load_state_dict(theirs.state_dict())
    rows = options.get("n_lstm_layers", 1)
    actions = torch.arange(BATCH * TIME) % 2
    results = []
    for policy in (ours, theirs):
        states = [randn(rows, BATCH, 8).mul(scale).requires_grad_() for scale in (1, 2, 3, 4)]
        observations = randn(BATCH * TIME, 3).requires_grad_()
        outputs = policy.evaluate_actions(
            observations, actions, RNNStates(tuple(states[:2]), tuple(states[2:])), beginnings().flatten().double()
        )
        inputs: dict[Any, Tensor] = {
            "observations": observations,
            **dict(enumerate(states)),
            **dict(policy.named_parameters()),
        }
        if policy.lstm_critic is None:  # the states of the critic are not used
            inputs = {name: tensor for name, tensor in inputs.items() if name not in (2, 3)}
        results.append(dict(enumerate([*outputs, *differentiate(outputs, inputs).values()])))
    assert_all_accurate(*results)
    assert layers_called == [TIME] * (1 if options.get("shared_lstm") else 2)


def test_recurrent_ppo_learns_with_the_policy(tmp_path: Any) -> None:
    """It learns, and its file is loaded into the package's own policy, and the other way round."""
    torch.set_default_dtype(torch.float32)  # that of the package's buffers
    ours, theirs = recurrent_ppo(page()["FusedLstmPolicy"]), recurrent_ppo()
    before = [weight.clone() for weight in ours.policy.parameters()]
    ours.learn(64)
    assert not any(map(torch.equal, before, ours.policy.parameters()))
    for source, target in ((ours, theirs), (theirs, ours)):
        source.save(tmp_path / "policy.zip")
        target.set_parameters(str(tmp_path / "policy.zip"))
        assert_identical(dict(target.policy.named_parameters()), dict(source.policy.named_parameters()))


FORMS: list[tuple[str, dict[str, Any]]] = [
    (kind, options) for kind in ("LSTM", "GRU") for options in ({}, {"num_layers": 2}, {"num_layers": 2, "bias": False})
]
FORMS += [("LSTM", {"proj_size": 3})]


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize(("kind", "options"), FORMS, ids=str)
def test_the_modules_of_torchrl(kind: str, options: dict[str, Any], stored: bool) -> None:
    import tensordict
    import torchrl.modules

    names = ["h", "c"] if kind == "LSTM" else ["h"]
    keys: dict[str, Any] = {"in_keys": ["input", *names], "out_keys": ["out", *(("next", name) for name in names)]}
    theirs = getattr(torchrl.modules, f"{kind}Module")(5, 8, default_recurrent_mode=True, **options, **keys)
    ours = page()[f"Fused{kind}Module"](5, 8, default_recurrent_mode=True, **options, **keys)
    ours.load_state_dict(theirs.state_dict())
    sizes = {"h": options.get("proj_size", 8), "c": 8}
    results = []
    for module in (ours, theirs):
        leaves = {"input": randn(BATCH, TIME, 5)}
        if stored:
            leaves |= {name: randn(BATCH, TIME, options.get("num_layers", 1), sizes[name]) for name in names}
        for leaf in leaves.values():
            leaf.requires_grad_()
        data = tensordict.TensorDict({**leaves, "is_init": beginnings().unsqueeze(-1)}, [BATCH, TIME])
        result = module(data)
        outputs = [result[key] for key in keys["out_keys"]]
        given = {**leaves, **dict(module.named_parameters())}
        gradients = differentiate(outputs, given)
        # Acting, a step at a time, where torchrl expects states of one size.
        acting = leaves if "proj_size" not in options else {"input": leaves["input"]}
        step = tensordict.TensorDict({name: leaf.detach()[:, 0] for name, leaf in acting.items()}, [BATCH])
        step["is_init"] = beginnings()[:, :1]
        with torch.no_grad(), torchrl.modules.set_recurrent_mode(False):
            acted = copy.copy(module)(step)
        results.append(dict(enumerate([*outputs, *gradients.values(), *(acted[key] for key in keys["out_keys"])])))
    assert_all_accurate(*results)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_bidirectional_module_is_refused(kind: str) -> None:
    names = ["h", "c"] if kind == "LSTM" else ["h"]
    keys = {"in_keys": ["input", *names], "out_keys": ["out", *(("next", name) for name in names)]}
    with pytest.raises(ValueError, match="bidirectional must be False"):
        page()[f"Fused{kind}Module"](5, 8, bidirectional=True, **keys)
