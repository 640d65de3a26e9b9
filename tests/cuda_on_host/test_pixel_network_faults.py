"""That tests of the evaluation pixel by pixel see faults: each of these, planted into the kernel, changes results.

All are planted into one copy of the kernel, and switched on one at a time.
"""

from dataclasses import dataclass

import pytest
import torch
from comparing import assert_accurate
from image_models import MODELS, SIZE, condition, dense_outputs, random_images, stepped_outputs
from torch import nn

from cuda_on_host.build import build_variant
from cuda_on_host.pixels import Pixels
from fused_rnn import reference
from fused_rnn.models import Categorical, PixelCNN

F64 = torch.float64
BATCH = 5
WRONG = "error|NaN or Inf|draws differ|output is NaN"


@dataclass(frozen=True)
class Fault:
    file: str
    old: str
    """A text that occurs once."""
    new: str
    """What replaces it, where FAULT is whether the fault is on."""
    model: str = "joined"
    """The model that shows it, of those in image_models.py; "many levels", or "a NaN" in the output."""
    says: str = WRONG
    """What the failure says."""


def left_out(statement: str, before: str = "", after: str = "") -> tuple[str, str]:
    """Return the edit that leaves out a statement; of several, that between other texts."""
    return before + statement + after, f"{before}if (!FAULT) {statement}{after}"


def instead(old: str, new: str) -> tuple[str, str]:
    return old, f"(FAULT ? {new} : {old})"


HOST, TASK = "cuda/pixel_network.cu", "cuda/pixelwise/task.h"
SUMS, NETWORK, DRAW = (f"cuda/pixelwise/{name}.cuh" for name in ("convolution", "network", "draw"))
BARRIER, WARP_BARRIER = "block_barrier();", "warp_barrier();"
COLOURS, MIXTURE, CLASSES, MANY = "gated, three colours", "mixture", "gated, with classes", "many levels"
FAULTS = {
    # In the sums of a convolution.
    "taps of a row that are added twice": Fault(SUMS, *instead("rows == TapRows::kOwn ? sums.taps_above : 0", "0")),
    "a centre that all groups see": Fault(SUMS, *instead("group + sums.own_group", "group + 1"), COLOURS),
    "a row of the image left out": Fault(SUMS, "if (row < 0) {", "if (row < FAULT) {"),
    "the same row for all taps": Fault(SUMS, *instead("row % input.rows * input.row_stride", "0")),
    "a pixel to the left of the image": Fault(SUMS, "at >= 0 &&", "at >= 0 - FAULT &&"),
    "a pixel to the right of the image": Fault(SUMS, "at < width ?", "at < width + FAULT ?"),
    "channels that fill no vector": Fault(SUMS, "for (; i < count;", "for (; i < count && !FAULT;"),
    "a part of each sum": Fault(SUMS, "for (int s = 0;", "for (int s = FAULT;"),
    "products that no thread has": Fault(
        SUMS, "(products.depth + slices * kPer - 1) / kPer", "(products.depth + (FAULT ? 0 : slices * kPer - 1)) / kPer"
    ),
    "the image of another pixel": Fault(
        SUMS, "columns == 1 ? pixel : pixel / columns", "FAULT ? 0 : columns == 1 ? pixel : pixel / columns"
    ),
    "weights of the first group": Fault(SUMS, *instead("group * convolution.width", "0"), COLOURS),
    "no wait for parts of sums": Fault(SUMS, *left_out(BARRIER, before="= part;\n      }\n      ")),
    "parts of sums over parts of sums": Fault(SUMS, *left_out(BARRIER, after="\n    }\n}")),
    # In the nodes.
    "a row that stays": Fault(NETWORK, *instead("row % place.rows", "0")),
    "no taps above": Fault(
        NETWORK, *left_out("convolve_groups<kRowTile>(i, TapRows::kAbove, 0, task.sums.groups, range);")
    ),
    "sums that begin anew": Fault(NETWORK, "if (continues)", "if (continues && !FAULT)"),
    "gates of the same numbers": Fault(NETWORK, "a[size]", "a[FAULT ? 0 : size]", CLASSES),
    "gates of the first group": Fault(NETWORK, *instead("group * size", "0"), COLOURS),
    "copies of the first channels": Fault(NETWORK, *instead("task.from + channel", "channel")),
    "copies to the first channels": Fault(NETWORK, *instead("task.to + channel", "channel")),
    "no wait for a node": Fault(NETWORK, *left_out(BARRIER, before="a[channel], b));\n      }\n    }\n    ")),
    "a value that is taken for another": Fault(NETWORK, "task.takes[1] ? value", "task.takes[1] || FAULT ? value"),
    "a node that follows another row": Fault(
        HOST, "node.whole_row == before.whole_row", "(FAULT || node.whole_row == before.whole_row)", CLASSES
    ),
    "a node that follows a copy": Fault(
        HOST, "before.kind != PixelNodeKind::kCopy", "(FAULT || before.kind != PixelNodeKind::kCopy)"
    ),
    # In the draws.
    "observed pixels that are drawn": Fault(NETWORK, "!d.observed ||", "FAULT || !d.observed ||"),
    "a level in the wrong row": Fault(NETWORK, *instead("row % p.input.rows", "0")),
    "no wait for the level": Fault(NETWORK, *left_out(BARRIER, before="+ begin, count, shared);\n    ")),
    "random numbers of the first group": Fault(NETWORK, *instead("pixel * p.groups + group", "pixel"), COLOURS),
    "outcomes of the first lane": Fault(DRAW, "+= shared.sums[other];", "+= shared.sums[FAULT ? 0 : other];"),
    "a weight that is not counted": Fault(DRAW, "before += more;", "before += FAULT ? 0 : more;", MANY),
    "a NaN that is passed over": Fault(
        DRAW, *instead("!(scores[i] <= scores[likeliest])", "scores[i] > scores[likeliest]"), "a NaN", "DID NOT RAISE"
    ),
    "no wait for the largest": Fault(DRAW, *left_out(WARP_BARRIER, after="\n  double largest = 0;")),
    "sums that are read too early": Fault(DRAW, *left_out(WARP_BARRIER, before="shared.chosen = likeliest;\n  ")),
    "a choice that is read too early": Fault(
        DRAW, *left_out(WARP_BARRIER, after="\n  const int chosen = shared.chosen;")
    ),
    "the component's own random number": Fault(DRAW, "uniforms + 1, level_at", "uniforms + !FAULT, level_at", MIXTURE),
    "coefficients of other channels": Fault(
        "distributions/logistic_mixture.h", "int64_t pair = 2 * d.channels;",
        "int64_t pair = 2 * d.channels - (FAULT ? 1 : 0);", MIXTURE,
    ),
    "means that are not rounded": Fault(DRAW, "::rint(x)", "(FAULT ? x : ::rint(x))", MIXTURE),
}  # fmt: skip


@pytest.fixture(scope="module")
def faulty() -> Pixels:
    edits = []
    for number, fault in enumerate(FAULTS.values()):
        edits.append((fault.file, fault.old, fault.new.replace("FAULT", f"cuda::host::has_fault({number})")))
    return Pixels(build_variant("faulty_pixels", edits, ["pixel_network", "pixels"]))


def check(pixels: Pixels, name: str) -> None:
    """Compare outputs and draws of a model with the definition, under some schedules."""
    for seed, multiprocessors in enumerate((1, 132, 1)):
        pixels.library.choose_schedule(seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fused_rnn.models.sampling.PixelState", pixels.state_type(multiprocessors))
            check_nan() if name == "a NaN" else check_model(name, seed)


def many_levels() -> PixelCNN:
    """Return a model of more levels than a warp has lanes."""
    torch.manual_seed(0)
    model = PixelCNN(8, 0, Categorical(90)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def check_model(name: str, seed: int) -> None:
    model = many_levels().double() if name == MANY else MODELS[name].double()
    distribution, cond = model.distribution, condition(model, BATCH)
    observed, mask = random_images(model, BATCH), torch.rand(BATCH, *SIZE) < 0.3
    assert_accurate(stepped_outputs(model, observed, cond), dense_outputs(model, observed, cond, F64))
    shape = (BATCH, *SIZE, distribution.data_channels, distribution.uniforms)
    uniforms = torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))
    drawn = model.sample(BATCH, SIZE, cond, 1.0, torch.Generator().manual_seed(seed), observed, mask)
    assert torch.equal(drawn, reference.sample(model, uniforms, cond, 1.0, observed, mask)), "draws differ"


def check_nan() -> None:
    model = PixelCNN(8, 1, Categorical(90)).eval()
    with torch.no_grad():
        nn.init.zeros_(model.network[-1].bias)[40] = torch.nan
    with pytest.raises(ValueError, match="output is NaN or infinite"):
        model.sample(2, SIZE)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_seen(faulty: Pixels, name: str) -> None:
    fault = FAULTS[name]
    faulty.library.choose_fault([*FAULTS].index(name))
    with pytest.raises((AssertionError, RuntimeError, ValueError, pytest.fail.Exception), match=fault.says):
        check(faulty, fault.model)


def test_without_a_fault(faulty: Pixels) -> None:
    faulty.library.choose_fault(-1)
    for name in sorted({fault.model for fault in FAULTS.values()}):
        check(faulty, name)
