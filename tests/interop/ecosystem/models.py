"""Small models of other packages with random weights, each with a function that runs it and returns its results.

The packages are imported only when a model is made, since only `make ecosystem` installs and uses them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

TIME, BATCH = 12, 4


class Problem(NamedTuple):
    """A model, and how to run it."""

    model: nn.Module
    run: Callable[[Any], Any]
    """Maps the model to its outputs: tensors, in lists, tuples and dicts of any depth."""
    layers: int
    """The number of modules that convert must replace."""
    subclasses: bool = False
    """Whether these modules are instances of subclasses of torch.nn's layers."""
    keep_isinstance: bool = False
    """Whether the package asks if these modules are instances of torch.nn's layers."""
    picklable: bool = True
    """Whether the model can be saved as a whole, before conversion too."""


def randn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def encodec() -> Problem:
    """EnCodec, neural audio compression: LSTMs between convolutions, Défossez et al., 2022; without its codes."""
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(num_filters=2, hidden_size=8, upsampling_ratios=[4, 2], codebook_size=8, codebook_dim=8)
    return Problem(
        EncodecModel(config), lambda model: model.decoder(model.encoder(randn(2, 1, 96))), layers=2, picklable=False
    )


def slanet() -> Problem:
    """SLANet, table recognition: attention around a GRUCell, step by step, Li et al., 2022; its head."""
    from transformers.models.slanet.modeling_slanet import SLANetAttentionGRUCell

    def run(model: Any) -> list[Tensor]:
        hidden, states = randn(BATCH, 8), []
        for _ in range(5):
            hidden, weights = model(hidden, randn(BATCH, TIME, 6), randn(BATCH, 3))
            states += [hidden, weights]
        return states

    return Problem(SLANetAttentionGRUCell(6, 8, 3), run, layers=1)


def parakeet() -> Problem:
    """Parakeet, speech recognition: the LSTM prediction network of a transducer."""
    from transformers import ParakeetRNNTConfig
    from transformers.models.parakeet.modeling_parakeet import ParakeetRNNTDecoder

    config = ParakeetRNNTConfig(vocab_size=11, decoder_hidden_size=16, num_decoder_layers=2, blank_token_id=0)
    tokens = torch.randint(0, 11, (BATCH, TIME), generator=torch.Generator().manual_seed(0))
    return Problem(ParakeetRNNTDecoder(config), lambda model: model(tokens), layers=1)


def graph_network() -> Problem:
    """A graph network: gated convolution (GRUCell), jumping knowledge and three readouts (LSTM and GRU)."""
    import torch_geometric.nn as pyg

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gated = pyg.GatedGraphConv(8, num_layers=3)
            self.second = pyg.GatedGraphConv(8, num_layers=1, bias=False)
            self.jump = pyg.JumpingKnowledge("lstm", channels=8, num_layers=2)
            self.readouts = nn.ModuleList([
                pyg.LSTMAggregation(8, 5), pyg.GRUAggregation(8, 5), pyg.Set2Set(8, processing_steps=3),
            ])  # fmt: skip

        def forward(self, nodes: Tensor, edges: Tensor, graph: Tensor) -> list[Tensor]:
            first = self.gated(nodes, edges)
            nodes = self.jump([first, self.second(first, edges)])
            return [readout(nodes, graph) for readout in self.readouts]

    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(0, 20, (2, 60), generator=generator)
    graph = torch.randint(0, 4, (20,), generator=generator).sort().values
    return Problem(Network(), lambda model: model(randn(20, 8), edges, graph), layers=6, picklable=False)


def forecasting_data() -> Any:
    """Three time series, as pytorch-forecasting takes them."""
    import pandas
    from pytorch_forecasting import TimeSeriesDataSet

    frame = pandas.DataFrame({"time": list(range(40)) * 3, "series": [name for name in "abc" for _ in range(40)]})
    frame["value"], frame["known"] = randn(120).numpy(), randn(121)[1:].numpy()
    return TimeSeriesDataSet(
        frame, time_idx="time", target="value", group_ids=["series"], static_categoricals=["series"],
        time_varying_known_reals=["known"], time_varying_unknown_reals=["value"],
        min_encoder_length=4, max_encoder_length=TIME, max_prediction_length=3,
    )  # fmt: skip


def forecasting_problem(name: str, layers: int, **kwargs: Any) -> Problem:
    """A model of pytorch-forecasting, whose layers are subclasses of torch.nn's that skip sequences of length 0."""
    import pytorch_forecasting

    data = forecasting_data()
    model = getattr(pytorch_forecasting, name).from_dataset(data, hidden_size=8, dropout=0.1, **kwargs)
    batch, _ = next(iter(data.to_dataloader(batch_size=8, train=False)))
    batch = {key: in_double(value) for key, value in batch.items()}
    return Problem(model, lambda model: model(batch)["prediction"], layers, subclasses=True)


def in_double(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(in_double(each) for each in value)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def temporal_fusion_transformer() -> Problem:
    """The temporal fusion transformer: an LSTM encoder and decoder below attention, Lim et al., 2021."""
    return forecasting_problem("TemporalFusionTransformer", layers=2, attention_head_size=2, lstm_layers=2)


def recurrent_forecaster() -> Problem:
    """pytorch-forecasting's RecurrentNetwork with GRUs."""
    return forecasting_problem("RecurrentNetwork", layers=1, cell_type="GRU", rnn_layers=2)


def neural_forecast(name: str, **kwargs: Any) -> Problem:
    """A model of neuralforecast."""
    import neuralforecast.models

    model = getattr(neuralforecast.models, name)(h=3, input_size=TIME, max_steps=1, **kwargs)
    batch = {"insample_y": randn(BATCH, TIME, 1), "futr_exog": None, "hist_exog": None, "stat_exog": None}
    return Problem(model, lambda model: model(batch), layers=1)


def lstm_forecaster() -> Problem:
    """Neuralforecast's LSTM: its output is the projection of the LSTM itself (proj_size)."""
    return neural_forecast("LSTM", encoder_hidden_size=8, encoder_dropout=0.1, recurrent=True)


def gru_forecaster() -> Problem:
    """Neuralforecast's GRU with an MLP decoder."""
    return neural_forecast("GRU", encoder_hidden_size=8, decoder_hidden_size=8, encoder_dropout=0.1)


def deep_ar() -> Problem:
    """DeepAR, probabilistic forecasting with an LSTM, Salinas et al., 2020."""
    return neural_forecast("DeepAR", lstm_hidden_size=8, lstm_n_layers=2, lstm_dropout=0.1, decoder_hidden_size=4)


def tokenizer() -> Problem:
    """Stanza's tokenizer: two bidirectional LSTMs over packed characters, Qi et al., 2020."""
    from stanza.models.tokenization.model import Tokenizer

    arguments = {
        "emb_dim": 6, "hidden_dim": 8, "dropout": 0.2, "feat_dropout": 0.1, "feat_dim": 2, "rnn_layers": 2,
        "conv_res": "1,3", "hier_conv_res": True, "use_mwt": True, "hierarchical": True, "hier_invtemp": 0.5,
        "tok_noise": 0.02, "input_dropout": False,
    }  # fmt: skip
    model = Tokenizer(arguments, 20, 6, 8, dropout=0.2, feat_dropout=0.1)
    units = torch.randint(1, 20, (BATCH, TIME), generator=torch.Generator().manual_seed(0))
    return Problem(model, lambda model: model(units, randn(BATCH, TIME, 2), [12, 9, 9, 2]), layers=2)


def lemmatizer() -> Problem:
    """Stanza's lemmatizer: an LSTM encoder, and a decoder with attention around an LSTMCell."""
    from stanza.models.common.seq2seq_model import Seq2SeqModel

    arguments = {
        "vocab_size": 15, "emb_dim": 6, "hidden_dim": 8, "num_layers": 2, "emb_dropout": 0.1, "dropout": 0.2,
        "max_dec_len": 10, "attn_type": "soft", "pos": False, "edit": False, "copy": False,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randint(4, 15, (BATCH, TIME), generator=generator) for _ in range(2))
    padding = torch.arange(TIME) >= torch.tensor([12, 9, 9, 2])[:, None]
    source = source.masked_fill(padding, 0)
    return Problem(Seq2SeqModel(arguments), lambda model: model(source, padding, target)[0], layers=2)


def reinforcement_module(name: str) -> Problem:
    """A recurrent module of torchrl over trajectories that begin anew in the middle, with packed sequences."""
    import tensordict
    import torchrl.modules

    states = ["h", "c"] if name == "LSTMModule" else ["h"]
    outputs = ["out", *(("next", state) for state in states)]
    module = getattr(torchrl.modules, name)(
        input_size=5, hidden_size=8, num_layers=2, dropout=0.1, default_recurrent_mode=True,
        in_keys=["input", *states], out_keys=outputs,
    )  # fmt: skip
    is_init = torch.zeros(BATCH, TIME, 1, dtype=torch.bool)
    is_init[:, 0] = is_init[1, 3] = is_init[2, 7] = True
    data = {"input": randn(BATCH, TIME, 5), "is_init": is_init}
    data |= {state: randn(BATCH, TIME, 2, 8) for state in states}

    def run(model: Any) -> list[Tensor]:
        result = model(tensordict.TensorDict(dict(data), [BATCH, TIME]))
        return [result[key] for key in outputs]

    return Problem(module, run, layers=1, keep_isinstance=True)


def torchrl_lstm() -> Problem:
    """Torchrl's LSTMModule."""
    return reinforcement_module("LSTMModule")


def torchrl_gru() -> Problem:
    """Torchrl's GRUModule."""
    return reinforcement_module("GRUModule")


def recurrent_ppo(policy: Any = "MlpLstmPolicy", **kwargs: Any) -> Any:
    """RecurrentPPO of sb3-contrib, reinforcement learning with LSTMs for actor and critic, on a tiny environment."""
    import gymnasium
    import numpy
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class Environment(gymnasium.Env):
        """Pays for the action that was shown in the step before, and ends after some steps."""

        observation_space = gymnasium.spaces.Box(-1, 1, (3,), numpy.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.time, self.shown = 0, self.np_random.uniform(-1, 1, 3).astype(numpy.float32)
            return self.shown, {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            reward = float((self.shown[0] > 0) == bool(action))
            self.time, self.shown = self.time + 1, self.np_random.uniform(-1, 1, 3).astype(numpy.float32)
            return self.shown, reward, self.time == 7, False, {}

    class Features(BaseFeaturesExtractor):
        """The observations in the default dtype: the package makes them float32."""

        def __init__(self, space: gymnasium.Space) -> None:
            super().__init__(space, features_dim=3)

        def forward(self, observations: Tensor) -> Tensor:
            return observations.to(torch.get_default_dtype())

    return RecurrentPPO(
        policy, Environment(), n_steps=16, batch_size=16, n_epochs=2, seed=0, device="cpu",
        policy_kwargs={"lstm_hidden_size": 8, "net_arch": [4], "features_extractor_class": Features, **kwargs},
    )  # fmt: skip


def recurrent_policy() -> Problem:
    """The policy of RecurrentPPO, with an episode that begins in the middle of a sequence."""
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    starts = torch.zeros(BATCH, TIME)
    starts[:, 0] = starts[1, 5] = 1.0
    actions = torch.arange(BATCH * TIME) % 2
    states = RNNStates(*((randn(1, BATCH, 8), randn(1, BATCH, 8)) for _ in range(2)))

    def run(model: Any) -> Any:
        return model.evaluate_actions(randn(BATCH * TIME, 3), actions, states, starts.flatten())

    return Problem(recurrent_ppo().policy, run, layers=2, picklable=False)


PROBLEMS = [
    encodec, slanet, parakeet, graph_network, temporal_fusion_transformer, recurrent_forecaster, lstm_forecaster,
    gru_forecaster, deep_ar, tokenizer, lemmatizer, torchrl_lstm, torchrl_gru, recurrent_policy,
]  # fmt: skip
