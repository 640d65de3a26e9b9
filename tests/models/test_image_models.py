"""The models of images: normalised, trainable in every way that PyTorch has, and drawn as the definition says."""

import copy
import io
import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from comparing import assert_accurate
from torch import Tensor
from torch.export import Dim

from fused_rnn import GatedActivation, MaskedConv2d, models, reference
from fused_rnn.models import AutoregressiveImageModel, Categorical, GatedPixelCNN, LogisticMixture, PixelCNN

MODELS: dict[str, Callable[[], AutoregressiveImageModel]] = {
    "PixelCNN": lambda: PixelCNN(8, 2, Categorical(4), kernel_size=5, dropout=0.1),
    "PixelCNN, colours": lambda: PixelCNN(9, 1, Categorical(3, channels=3), kernel_size=3),
    "PixelCNN, logistics": lambda: PixelCNN(8, 1, LogisticMixture(2, 4, channels=1), kernel_size=3),
    "PixelCNN, logistics of colours": lambda: PixelCNN(8, 1, LogisticMixture(2, 3, channels=3), kernel_size=3),
    "GatedPixelCNN": lambda: GatedPixelCNN(6, 3, Categorical(3), first_kernel_size=5, dropout=0.1),
    "GatedPixelCNN, colours, classes": lambda: GatedPixelCNN(6, 2, Categorical(3, 3), 4, first_kernel_size=3),
    "GatedPixelCNN, logistics, classes": lambda: GatedPixelCNN(8, 2, LogisticMixture(2, 3, channels=1), 2),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> AutoregressiveImageModel:
    """Each kind of model, with random weights and biases that make it far from uniform."""
    made = MODELS[request.param]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
    return made


def images_of(model: AutoregressiveImageModel, batch: int, height: int = 4, width: int = 5) -> Tensor:
    return torch.randint(model.distribution.levels, (batch, model.distribution.channels, height, width))


def cond_of(model: AutoregressiveImageModel, batch: int) -> tuple[Tensor, ...]:
    """Return the arguments of a model after the images: labels, if it has a condition."""
    return (torch.arange(batch) % model.condition_size,) if model.condition_size else ()


def test_probabilities_of_all_images_add_up_to_one(model: AutoregressiveImageModel) -> None:
    """They do, for all conditions, only if no pixel sees itself or a later one."""
    model = model.double().eval()
    distribution = model.distribution
    height, width = (1, 2) if distribution.channels == 3 else (2, 2)
    size = distribution.channels * height * width
    images = torch.tensor(list(product(range(distribution.levels), repeat=size))).view(
        -1, distribution.channels, height, width
    )
    log_prob = distribution.log_prob(model(images, *cond_of(model, len(images))), images).sum((1, 2))
    if model.condition_size:
        log_prob = torch.stack([
            distribution.log_prob(model(images, torch.full((len(images),), label)), images).sum((1, 2))
            for label in range(model.condition_size)
        ])  # fmt: skip
    total = log_prob.exp().sum(-1)
    assert_accurate(total, torch.ones_like(total))
    assert log_prob.std() > 0.1


def test_loss_is_the_distributions(model: AutoregressiveImageModel) -> None:
    images, model = images_of(model, 3), model.eval()
    cond = cond_of(model, 3)
    outputs = model(images, *cond)
    assert outputs.shape == (3, model.distribution.outputs, 4, 5)
    loss = model.loss(images, *cond)
    assert torch.equal(loss, model.distribution.loss(outputs, images))
    assert_accurate(model.bits_per_dimension(images, *cond), loss.double() / math.log(2))


def test_sampling_is_consistent_with_one_pass(model: AutoregressiveImageModel) -> None:
    """Every level drawn is what its random numbers give with the outputs of one pass over the finished image."""
    model, batch, height, width = model.eval(), 2, 3, 4
    distribution, cond = model.distribution, cond_of(model, batch)
    uniforms = torch.rand(batch, height, width, distribution.data_channels, distribution.uniforms)
    observed = images_of(model, batch, height, width)
    mask = torch.rand(batch, height, width) < 0.3
    for temperature in (0, 0.5, 1):
        images = reference.sample(model, uniforms, cond[0] if cond else None, temperature, observed, mask)
        blocks = model(images, *cond).chunk(distribution.data_channels, 1)
        for row, column in product(range(height), range(width)):
            levels = torch.cat(
                [
                    distribution.draw(block[:, :, row, column], uniforms[:, row, column, step], temperature)
                    for step, block in enumerate(blocks)
                ], 1
            )  # fmt: skip
            expected = torch.where(mask[:, row, column, None], observed[:, :, row, column], levels)
            assert torch.equal(images[:, :, row, column], expected)


def test_training(model: AutoregressiveImageModel, device: str) -> None:
    """A model learns a fixed image by heart, under autocast too."""
    image = images_of(model, 1).expand(2, -1, -1, -1).to(device)
    cond = tuple(labels.to(device) for labels in cond_of(model, 2))
    for autocast in (False, True):
        trained, losses = copy.deepcopy(model).to(device), []
        optimizer = torch.optim.Adam(trained.parameters(), 1e-2)
        for _ in range(80):
            optimizer.zero_grad()
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                loss = trained.loss(image, *cond)
            assert loss.dtype == torch.float32
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]


def test_every_parameter_gets_a_gradient(model: AutoregressiveImageModel) -> None:
    model.loss(images_of(model, 2), *cond_of(model, 2)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


# Compiling takes seconds, and these have all parts between them.
@pytest.mark.parametrize("model", ["PixelCNN, logistics of colours", "GatedPixelCNN, colours, classes"], indirect=True)
def test_compile(model: AutoregressiveImageModel) -> None:
    images, cond, model = images_of(model, 2), cond_of(model, 2), model.eval()
    expected = model.loss(images, *cond)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")(images, *cond)
    torch.testing.assert_close(compiled, expected)
    for ours, theirs in zip(torch.autograd.grad(compiled, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_export(model: AutoregressiveImageModel) -> None:
    model = model.eval()
    batch = Dim("batch")
    given: tuple[Tensor, ...] = (images_of(model, 3), *cond_of(model, 3))
    shapes = tuple({0: batch, **({2: Dim("height"), 3: Dim("width")} if len(arg.shape) > 1 else {})} for arg in given)
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, given, dynamic_shapes=shapes), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    other = (images_of(model, 2, 6, 3), *cond_of(model, 2))
    # The program has torch's own tanh and sigmoid, which the gate's kernel equals up to rounding.
    torch.testing.assert_close(loaded(*other), model(*other))


class Leaves(torch.fx.Tracer):
    """Keeps the layers of this package whole, as a sampler does that walks the graph of a network."""

    def is_leaf_module(self, module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, (MaskedConv2d, GatedActivation)) or super().is_leaf_module(module, name)


def test_the_network_can_be_traced(model: AutoregressiveImageModel) -> None:
    """The graph of a network has only modules and sums, so that a sampler can walk it pixel by pixel."""
    model = model.eval()
    graph = Leaves().trace(model.network)
    traced = torch.fx.GraphModule(model.network, graph)
    images = model.distribution.scale(images_of(model, 2))
    cond = [model.condition(label, 2, images.dtype) for label in cond_of(model, 2)]
    given = (images, *cond)
    assert torch.equal(traced(*given), model.network(*given))
    allowed = (MaskedConv2d, GatedActivation, torch.nn.ReLU, torch.nn.Dropout2d, torch.nn.Linear)
    for node in graph.nodes:
        if node.op == "call_module":
            assert isinstance(traced.get_submodule(node.target), allowed)
        elif node.op == "call_function":
            assert node.target.__name__ in ("add", "getitem")


def test_dtype_follows_the_weights(model: AutoregressiveImageModel) -> None:
    images, cond = images_of(model, 2), cond_of(model, 2)
    assert model.double()(images, *cond).dtype == torch.float64
    assert model.loss(images, *cond).dtype == torch.float64


def test_state_dict(model: AutoregressiveImageModel) -> None:
    model = model.eval()
    images, cond = images_of(model, 2), cond_of(model, 2)
    expected, clone = model(images, *cond), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    clone.load_state_dict(model.state_dict())
    assert torch.equal(clone(images, *cond), expected)


def test_errors() -> None:
    with pytest.raises(ValueError, match="channels must be at least 2 for each of 3 groups"):
        PixelCNN(5, 1, Categorical(4, 3))
    with pytest.raises(ValueError, match="blocks must not be negative"):
        PixelCNN(8, -1)
    model = PixelCNN(4, 1, Categorical(4))
    with pytest.raises(TypeError, match="images must be integer levels"):
        model(torch.rand(1, 1, 4, 4))
    with pytest.raises(ValueError, match="images must have shape"):
        model(torch.zeros(1, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="cond is given, but the condition of the model is none"):
        model(torch.zeros(1, 1, 4, 4, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="condition_size must not be negative"):
        models.AutoregressiveImageModel(model.network, model.distribution, -1)


def test_errors_of_the_gated_model() -> None:
    with pytest.raises(ValueError, match="channels must be a positive multiple of the 3 groups"):
        GatedPixelCNN(8, 2, Categorical(4, 3))
    with pytest.raises(ValueError, match="layers must be positive"):
        GatedPixelCNN(8, 0)
    for name, size in product(("kernel_size", "first_kernel_size"), (1, 4)):
        with pytest.raises(ValueError, match=f"{name} must be odd and at least 3"):
            GatedPixelCNN(8, 2, **{name: size})  # type: ignore[arg-type]
    model, images = GatedPixelCNN(4, 1, Categorical(4), condition_size=3), torch.zeros(2, 1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="cond is missing, but the condition of the model is of size 3"):
        model(images)
    with pytest.raises(ValueError, match="cond of class labels must have shape \\[2\\]"):
        model(images, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="cond must have shape \\[2, 3\\]"):
        model(images, torch.zeros(2, 4))
    with pytest.raises(RuntimeError, match="Class values must be smaller than num_classes"):
        model(images, torch.tensor([0, 3]))


def test_conditions() -> None:
    """A label is the same as a vector with a one in its place, and both stacks depend on it."""
    model, images = GatedPixelCNN(4, 2, Categorical(4), condition_size=3).eval(), torch.randint(4, (2, 1, 4, 4))
    labels = torch.tensor([2, 0])
    expected = model(images, labels)
    assert torch.equal(model(images, torch.eye(3)[labels]), expected)
    assert (model(images, labels.flip(0)) != expected).all()
