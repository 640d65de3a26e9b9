"""Faults in masked convolution, in the operators, and in Python."""

from mutation.fault import Fault

CONVOLUTION = ("tests/operators/test_masked_conv2d.py",)
FUSED = ("tests/operators/test_masked_conv2d_fused.py",)
PROPERTIES = ("tests/operators/test_masked_conv2d_properties.py",)
REFUSALS = ("tests/operators/test_refusals.py",)
LENGTHS = ("tests/layers/test_lengths.py",)
STATES = ("tests/layers/test_states.py",)
MODULES = ("tests/layers/test_modules.py",)
REFERENCE = ("tests/operators/test_reference.py",)
OPCHECK = ("tests/operators/test_opcheck.py",)
LAYERS = ("tests/operators/test_recurrent.py", "-k", "LSTM and equals_torch")
AUTOGRAD = ("tests/autograd/test_autograd.py",)
FUNC = ("tests/autograd/test_func.py",)
PLAIN = ("tests/layers/test_plain_call.py",)
FROZEN = ("tests/layers/test_frozen.py", "-k", "changed or cells or written_list")
EPILOGUE = "csrc/cpu/conv/epilogue.h"
CONVOLUTION_KERNEL = "cpu/masked_conv2d_kernel.cpp"
PARAMETERS_KERNEL = "cpu/masked_conv2d_parameter_gradients_kernel.cpp"

KERNEL = f"csrc/{CONVOLUTION_KERNEL}"
PARAMETERS = f"csrc/{PARAMETERS_KERNEL}"
TAPS = "csrc/cpu/conv/taps.h"
IMAGES = "csrc/cpu/conv/images.h"
TAP_PRODUCTS = "csrc/cpu/conv/tap_products.h"

CONVOLUTIONS = [
    Fault(
        "a bias of the first channels for all", KERNEL, "panel.first ? c.bias + panel.columns.begin : sums;",
        "panel.first ? c.bias : sums;", CONVOLUTION, CONVOLUTION_KERNEL,
    ),
    Fault(
        "rows of another image", KERNEL, "if (image.contains(row + run.row)) multiply(tile, run, pixel);",
        "multiply(tile, run, pixel);", CONVOLUTION, CONVOLUTION_KERNEL,
    ),
    Fault(
        "rows above a strip left out", KERNEL, "above = c.mirrored ? 0 : reach;",
        "above = c.mirrored || reach > s.dilation_height ? 0 : reach;", CONVOLUTION, CONVOLUTION_KERNEL,
    ),
    Fault(
        "a tap's products for the pixel beside", TAP_PRODUCTS, "products + (pixels.begin + run.column) * stride",
        "products + pixels.begin * stride", CONVOLUTION, CONVOLUTION_KERNEL,
    ),
    Fault(
        "products of the rows below a strip left out", TAP_PRODUCTS, "row < smaller(image.end, rows.end + below)",
        "row < rows.end", CONVOLUTION, CONVOLUTION_KERNEL,
    ),
    Fault(
        "columns without dilation", TAPS, "(column - width / 2) * sizes.dilation_width});", "column - width / 2});",
        CONVOLUTION, CONVOLUTION_KERNEL,
    ),
    Fault(
        "dilated taps taken for neighbours", TAPS, "(channels < kFew && sizes.dilation_width == 1)", "channels < kFew",
        CONVOLUTION, CONVOLUTION_KERNEL,
    ),
    Fault(
        "groups that begin a channel early", TAPS, "return first_of_group(group, sizes.data_channels, channels);",
        "return group * channels / sizes.data_channels;", CONVOLUTION, CONVOLUTION_KERNEL,
    ),
    Fault(
        "the last columns of a transposed image left out", IMAGES, "one_by_one({0, rows}, {whole_columns, columns});",
        "", CONVOLUTION, CONVOLUTION_KERNEL,
    ),
    Fault(
        "a margin that is not zero", IMAGES,
        "std::memset(target.at(row, layout.width), 0, layout.margin * layout.channels * sizeof(T));",
        "std::memset(target.at(row, layout.width), 0x3f, layout.margin * layout.channels * sizeof(T));",
        CONVOLUTION, CONVOLUTION_KERNEL,
    ),
    Fault(
        "a gate of the halves of all channels", EPILOGUE, "const int64_t half = channels / groups / 2;",
        "const int64_t half = channels / 2; groups = 1;", FUSED, CONVOLUTION_KERNEL,
    ),
    Fault(
        "a residual of the image's first rows", EPILOGUE,
        "add((image.begin * channels + channel * layout.height + rows.begin - image.begin) * width",
        "add((image.begin * channels + channel * layout.height) * width", FUSED, CONVOLUTION_KERNEL,
    ),
    Fault(
        "sums that are not written", "csrc/cpu/masked_conv2d_kernel.cpp",
        "if (!results.replaces_sums()) target.finish(rows, image, sums);", "", FUSED, CONVOLUTION_KERNEL,
    ),
    Fault(
        "a gate's gradient of the wrong derivative", "csrc/cpu/conv/gate.h", "scaled * (one - tanh * tanh)",
        "scaled * (one - tanh)", ("tests/operators/test_gated_activation.py",), "cpu/gated_activation_kernel.cpp",
    ),
    Fault(
        "a weight gradient of the last lines only", PARAMETERS, "tile.add(sums, kWidth, kWidth);", "",
        CONVOLUTION, PARAMETERS_KERNEL,
    ),
    Fault(
        "a gradient of masked weights", PARAMETERS, "= active ? sums[tap * s.in_channels * width] : T(0);",
        "= tap < w.taps().end ? sums[tap * s.in_channels * width] : T(0);", CONVOLUTION, PARAMETERS_KERNEL,
    ),
    Fault(
        "a weight gradient before all sums are done", PARAMETERS,
        "    barrier.wait(team, thread);\n    unpack(", "    unpack(", CONVOLUTION, PARAMETERS_KERNEL,
    ),
]  # fmt: skip

PLAIN_CALLS = [
    Fault(
        "a plain call under autocast", "csrc/ops/plain_call.cpp",
        "!at::autocast::is_autocast_enabled(at::kCPU) && ", "", PLAIN, "ops/plain_call.cpp",
    ),
    Fault(
        "a plain call whose state needs a gradient", "csrc/ops/plain_call.cpp", " && !needs_graph(states)", "",
        PLAIN, "ops/plain_call.cpp",
    ),
    Fault(
        "a plain call that is traced", "csrc/ops/plain_call.cpp", "!torch::jit::tracer::isTracing() && ", "",
        PLAIN, "ops/plain_call.cpp",
    ),
    Fault(
        "a plain call with the first layer's states for all", "csrc/ops/plain_call.cpp",
        "state.narrow(0, layer * directions, directions)", "state.narrow(0, 0, directions)",
        PLAIN, "ops/plain_call.cpp",
    ),
    Fault(
        "a frozen weight that was replaced in the list alone", "csrc/bindings.cpp",
        "PyList_GET_ITEM(listed.ptr(), i) == weight.ptr() &&", "", FROZEN, "bindings.cpp",
    ),
]  # fmt: skip

OPERATORS = [
    Fault(
        "batch sizes that rise again", "csrc/ops/layer.cpp", "0 <= *size && *size <= previous,",
        "0 <= *size && *size <= batch,", REFUSALS, "ops/layer.cpp",
    ),
    Fault(
        "rows that batch sizes do not count", "csrc/ops/layer.cpp", "TORCH_CHECK(input.size(0) == rows,",
        "TORCH_CHECK(input.size(0) >= rows,", REFUSALS, "ops/layer.cpp",
    ),
    Fault(
        "a gradient of another dtype", "csrc/ops/recurrent.cpp", "TORCH_CHECK(tensor->scalar_type() == type,",
        "TORCH_CHECK(true,", REFUSALS, "ops/recurrent.cpp",
    ),
    Fault(
        "a convolution's gradient of another dtype", "csrc/ops/masked_conv2d.cpp",
        "check_like_input(images, name, layer.input);", "", REFUSALS, "ops/masked_conv2d.cpp",
    ),
    Fault(
        "a weight of another dtype", "csrc/ops/layer.cpp",
        "TORCH_CHECK(tensor.scalar_type() == input.scalar_type(), name,", "TORCH_CHECK(true, name,", REFUSALS,
        "ops/layer.cpp",
    ),
    Fault(
        "final c of sorted sequences", "csrc/ops/recurrent_cpu.cpp",
        "outputs.states.push_back(cpu_layer.unsorted(cpu_layer.for_caller(c_n)));",
        "outputs.states.push_back(cpu_layer.for_caller(c_n));", LENGTHS, "ops/recurrent_cpu.cpp",
    ),
    Fault(
        "initial states of unsorted sequences", "csrc/ops/recurrent_cpu.cpp",
        "return for_kernel(sorted(state), index == 0 ? hidden_type : compute);",
        "return for_kernel(state, index == 0 ? hidden_type : compute);", LENGTHS, "ops/recurrent_cpu.cpp",
    ),
    Fault(
        "a reverse direction that replaces states behind a reset", "csrc/ops/recurrent_cpu.cpp",
        "given + steps.first_row(t + 1), steps.batch_size(t + 1)",
        "given + steps.first_row(t), steps.batch_size(t + 1)",
        ("tests/layers/test_resets.py",), "ops/recurrent_cpu.cpp",
    ),
    Fault(
        "padding that is not zero", "csrc/ops/recurrent_cpu.cpp",
        "const Tensor padded = at::zeros({first, second, tensor.size(-1)}, tensor.options());",
        "const Tensor padded = at::zeros({first, second, tensor.size(-1)}, tensor.options()).add_(1);", LENGTHS,
        "ops/recurrent_cpu.cpp",
    ),
    Fault(
        "a gradient of c at every step in the wrong order", "csrc/ops/recurrent_cpu.cpp",
        "grad_cells = cpu_layer.rows_for_kernel(gradients.history[0], 1, cpu_layer.compute);",
        "grad_cells = cpu_layer.rows_for_kernel(gradients.history[0].defined() ? gradients.history[0].flip(1)"
        " : gradients.history[0], 1, cpu_layer.compute);", STATES, "ops/recurrent_cpu.cpp",
    ),
    Fault(
        "a dilation that overflows", "csrc/ops/masked_conv2d.cpp", "std::min(options.dilation[1], sizes.width);",
        "options.dilation[1];", CONVOLUTION, "ops/masked_conv2d.cpp",
    ),
    Fault(
        "a weight of one column read as if it had more", "csrc/ops/masked_conv2d_cpu.cpp",
        "return weight.stride(weight.size(3) == 1 ? 2 : 3);", "return weight.stride(3);", CONVOLUTION,
        "ops/masked_conv2d_cpu.cpp",
    ),
]  # fmt: skip

PYTHON = [
    Fault(
        "a gradient of ReLU that looks at the sum with a residual", "fused_rnn/autograd/masked_conv2d.py",
        'from_output = ctx.activation == "relu" and residual is None', 'from_output = ctx.activation == "relu"', FUSED,
    ),
    Fault(
        "any weight on meta tensors", "fused_rnn/ops/checks.py", "            check_shape(weight, name, shape)\n", "",
        REFUSALS,
    ),
    Fault(
        "any gradient on meta tensors", "fused_rnn/ops/recurrent.py",
        "grad_final_states, grad_history, input, states, output, gates, history)\n    return (",
        "[None] * len(states), [None] * (len(states) - 1), input, states, output, gates, history)\n    return (",
        REFUSALS,
    ),
    Fault(
        "float64 saved as float32 while tracing", "fused_rnn/ops/shapes.py",
        "return torch.float64 if dtype == torch.float64 else torch.float32", "return torch.float32", OPCHECK,
    ),
    Fault(
        "an unwanted gradient that is traced", "fused_rnn/ops/shapes.py",
        "tensor.new_empty(tensor.shape if wanted else (0,))", "tensor.new_empty(tensor.shape)", OPCHECK,
    ),
    Fault(
        "indices folded as the slower ones", "fused_rnn/autograd/batching.py",
        "return first.movedim(0, batch + 1).flatten(batch, batch + 1)",
        "return first.movedim(0, batch).flatten(batch, batch + 1)", FUNC,
    ),
    Fault(
        "gradients of one index for the whole batch", "fused_rnn/autograd/recurrent.py",
        "foldable = not any(needed[1 + states :])", "foldable = True", FUNC,
    ),
    Fault(
        "second gradients that treat half precision as the first does not", "fused_rnn/autograd/graph.py",
        "return tensor.float() if tensor is not None and is_half else tensor", "return tensor", AUTOGRAD,
    ),
    Fault(
        "gradients of missing outputs", "fused_rnn/autograd/graph.py",
        "return tuple(compress(function(*map(_widened, all_inputs)), used))",
        "return tuple(function(*map(_widened, all_inputs)))[: sum(used)]", AUTOGRAD,
    ),
    Fault(
        "packed final states in the order of lengths", "fused_rnn/functional/recurrent.py",
        "states = (state.index_select(1, unsorted_indices) for state in rest[: mode.cell.states])",
        "states = (state for state in rest[: mode.cell.states])", LAYERS,
    ),
    Fault(
        "weights of a frozen layer that are written to in place", "csrc/bindings.cpp", "if (written || moved)",
        "if (moved)", FROZEN, "bindings.cpp",
    ),
    Fault(
        "weights of a frozen layer whose data are exchanged", "csrc/bindings.cpp", "if (written || moved)",
        "if (written)", FROZEN, "bindings.cpp",
    ),
    Fault(
        "a frozen cell that returns its output before its states", "fused_rnn/modules/freezing.py",
        "return results if frozen.is_layer else results[1:]", "return results", FROZEN,
    ),
    Fault(
        "dropout before the first layer", "fused_rnn/functional/recurrent.py", "if layer > 0 and dropout > 0:",
        "if dropout > 0:", MODULES,
    ),
    Fault(
        "autocast of float64", "fused_rnn/functional/autocast.py",
        "eligible = tensor.is_floating_point() and tensor.dtype != torch.float64",
        "eligible = tensor.is_floating_point()", MODULES,
    ),
    Fault(
        "a reference that runs backwards from the front", "fused_rnn/reference/sequence.py",
        "slice(None, None, -1 if direction else 1)", "slice(None)", REFERENCE,
    ),
    Fault(
        "a reference that loses finished sequences", "fused_rnn/reference/sequence.py",
        "all_sequences[ends > t], all_sequences[ends > t])", "all_sequences[ends >= t], all_sequences[ends >= t])",
        REFERENCE,
    ),
    Fault(
        "a mask that hides the own group", "fused_rnn/reference/masked_conv2d.py",
        'in_group <= out_group if mask_type == "B" else in_group < out_group', "in_group < out_group",
        CONVOLUTION,
    ),
]  # fmt: skip

FAULTS = [*CONVOLUTIONS, *OPERATORS, *PLAIN_CALLS, *PYTHON]
