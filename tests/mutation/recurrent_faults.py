"""Faults in the recurrent kernels for a CPU.

A fault is compiled for one cell and one type of the computation, as far as that shows it: a whole kernel would take ten
times as long. The tests are those in float64, or for a fault in float32 those in float32 and half precision.
"""

from functools import partial

from planting import Edit

from mutation.fault import Fault

LAYERS = "tests/operators/test_recurrent.py"
THREADS = "tests/operators/test_determinism.py"
LENGTHS = "tests/layers/test_lengths.py"
STATES = "tests/layers/test_states.py"
VALUES = "tests/operators/test_values.py"
RESETS = "tests/layers/test_resets.py"

GEMM = "csrc/cpu/kit/gemm.h"
PACKING = "csrc/cpu/kit/packing.h"
TILE = "csrc/cpu/kit/tile.h"
ACTIVATION = "csrc/cpu/kit/activation.h"
FORWARD = "csrc/cpu/recurrent/forward.h"
BACKWARD = "csrc/cpu/recurrent/backward.h"
WEIGHTS = "csrc/cpu/recurrent/weight_gradients.h"
PACKED = "csrc/cpu/recurrent/packed_weights.h"
HIDDEN = "csrc/cpu/recurrent/hidden_states.h"
SAVED = "csrc/cpu/recurrent/saved_values.h"

# For each type of the computation, the tests that have another one.
OTHER_TESTS = {"double": "float32 or bfloat16 or float16", "float": "float64"}


def planted(
    kernel: str,
    words: str,
    omitted: tuple[Edit, ...],
    name: str,
    file: str,
    old: str,
    new: str,
    tests: str = LAYERS,
    type: str = "double",
) -> Fault:
    """Return a fault in the kernels of one cell and one type.

    Args:
        kernel: the source of the kernels.
        words: the tests of the cell, as pytest's -k selects them.
        omitted: edits that leave out the other cells of the source.
        name: the name of the fault.
        file: the file that has it.
        old: a text in the file.
        new: what replaces it.
        tests: the file of the tests.
        type: the type of the computation, double or float.
    """
    unused = ("float", "float, c10::BFloat16") if type == "double" else ("double",)
    file_of_types = "csrc/cpu/recurrent/instantiate.h"
    fewer = [
        (file_of_types, f"template void recurrent_{step}<cells::Cell>({params}<{types}>& params);", "")
        for types in unused
        for step, params in (
            ("forward", "const RecurrentForwardParams"),
            ("backward", "const RecurrentBackwardParams"),
        )
    ]
    selected = f"{words} and not ({OTHER_TESTS[type]})"
    return Fault(name, file, old, new, (tests, "-k", selected), kernel, (*fewer, *omitted))


NO_TANH: Edit = ("csrc/cpu/rnn_kernel.cpp", "FUSED_RNN_INSTANTIATE(RNNTanh)", "")
NO_RELU: Edit = ("csrc/cpu/rnn_kernel.cpp", "FUSED_RNN_INSTANTIATE(RNNReLU)", "")
lstm = partial(planted, "cpu/lstm_kernel.cpp", "LSTM", ())
gru = partial(planted, "cpu/gru_kernel.cpp", "GRU", ())
rnn = partial(planted, "cpu/rnn_kernel.cpp", "RNN and not RELU", (NO_RELU,))
relu = partial(planted, "cpu/rnn_kernel.cpp", "RELU", (NO_TANH,))

PRODUCTS = [
    rnn(
        "the last block of a depth of whole blocks left out", GEMM,
        "for (int64_t k = 0; k == 0 || k < p.depth; k += plan.depth) {",
        "for (int64_t k = 0; k == 0 || k < p.depth - (p.depth % kBlockDepth ? 0 : kBlockDepth); k += plan.depth) {"),
    rnn(
        "a tail of a block of the depth left out", GEMM, "const int64_t terms = smaller(p.depth - k, plan.depth)",
        "const int64_t terms = p.depth - k < plan.depth && k > 0 ? 0 : smaller(p.depth - k, plan.depth)"),
    rnn(
        "a bias gradient of few rows forgets the first step", GEMM, "T sum = p.accumulate ? p.row_sums[row] : T(0);",
        "T sum = T(0);"),
    gru(
        "a bias gradient of few rows added by each thread", GEMM, "if (!p.row_sums || columns.begin > 0) continue;",
        "if (!p.row_sums) continue;", THREADS),
    rnn(
        "a bias gradient added by each thread", GEMM, "if (p.row_sums && first == 0)",
        "if (p.row_sums && first == columns.begin)", THREADS),
    rnn(
        "a bias gradient of the last block only", GEMM,
        "store(target + row, accumulate ? sum + load(target + row, count) : sum, count);",
        "store(target + row, sum, count);"),
    rnn(
        "rows of a transposed panel left out", PACKING,
        "for (; k < depth; ++k)\n      for (int64_t column = 0; column < kWidth; ++column) packed",
        "for (; k < depth - 1; ++k)\n      for (int64_t column = 0; column < kWidth; ++column) packed"),
    rnn(
        "the first part of a sum of whole parts left out", TILE, "if (depth > kPart) add(total);",
        "if (depth > kPart && depth % kPart != 0) add(total);"),
    rnn(
        "the first part of three left out", TILE, "k == 0 ? void(total = *this) : total.add(*this);",
        "total = *this;"),
    rnn(
        "the last rows left out of a thread's share", "csrc/cpu/kit/parallel.h",
        "const int64_t grains = divide_up(count, grain);", "const int64_t grains = count / grain;"),
]  # fmt: skip

ACTIVATIONS = [
    lstm(
        "sigmoid saturates too early", ACTIVATION, "at::vec::clamp_min(x.neg(), Vec<float>(-87.0f))",
        "at::vec::clamp(x.neg(), Vec<float>(-10.0f), Vec<float>(10.0f))", type="float"),
    lstm(
        "sigmoid stays above zero", ACTIVATION, "at::vec::clamp_min(x.neg(), Vec<float>(-87.0f))",
        "at::vec::clamp(x.neg(), Vec<float>(-87.0f), Vec<float>(88.0f))", VALUES, "float"),
    rnn("a coefficient of e^x is inexact", ACTIVATION, "0.16666432f", "0.16667432f", VALUES, "float"),
    rnn(
        "tanh near zero loses its digits", ACTIVATION,
        "const Vec<float> expm1 = at::vec::fmadd(e.power, e.rest, e.power - Vec<float>(1.0f));",
        "const Vec<float> expm1 = at::vec::fmadd(e.power, e.rest, e.power) - Vec<float>(1.0f);", VALUES, "float"),
    relu("a gradient passes a ReLU that is zero", ACTIVATION, "y <= Vec<T>(T(0))", "y < Vec<T>(T(0))"),
    relu(
        "ReLU loses NaN", ACTIVATION, "return at::vec::maximum(x, Vec<T>(T(0)));",
        "return Vec<T>::blendv(Vec<T>(T(0)), x, x > Vec<T>(T(0)));"),
    relu(
        "ReLU's gradient is a product with zero", ACTIVATION,
        "return Vec<T>::blendv(grad, Vec<T>(T(0)), y <= Vec<T>(T(0)));",
        "return grad * Vec<T>::blendv(Vec<T>(T(1)), Vec<T>(T(0)), y <= Vec<T>(T(0)));"),
]  # fmt: skip

CELLS = [
    lstm(
        "the forget gate's gradient from c after the step", "csrc/cells/lstm.h",
        "grad_c * (f * (one - f)) * before[1]", "grad_c * (f * (one - f)) * after[1]"),
    lstm(
        "a gradient times a large state", "csrc/cells/lstm.h", "grad_c * (f * (one - f)) * before[1]",
        "grad_c * before[1] * (f * (one - f))", VALUES, "float"),
    lstm("swapped gates", "csrc/cells/lstm.h", "c = f * c + i * g;", "c = i * c + f * g;"),
    gru("an update gate that forgets h", "csrc/cells/gru.h", "grad_h = grad_h * z;", "grad_h = V(0);"),
    gru(
        "the reset gate's gradient without the product", "csrc/cells/gru.h", "grad_n * (r * (one - r)) * hn",
        "grad_n * (r * (one - r))"),
    gru(
        "a gradient times a large product", "csrc/cells/gru.h", "grad_n * (r * (one - r)) * hn",
        "grad_n * hn * (r * (one - r))", VALUES, "float"),
]  # fmt: skip

STEPS = [
    rnn(
        "a step that reads sequences that have ended", "csrc/cpu/recurrent/schedule.h",
        "smaller(previous_rows, rows), has_previous", "previous_rows, has_previous"),
    rnn(
        "a late start from the first sequence's h0", HIDDEN,
        ": p_.h0 + (direction * s_.steps.batch + b) * s_.output_size;",
        ": p_.h0 + direction * s_.steps.batch * s_.output_size;"),
    rnn(
        "initial states read as if they were output", FORWARD,
        "has_previous ? states_.hidden_row() : s_.output_size;", "states_.hidden_row();"),
    gru(
        "a sum without input that gets some", FORWARD, "if (i % kSums >= Cell::kGates) continue;",
        "if (i % kSums > Cell::kGates) continue;"),
    lstm(
        "a last state of a sequence without steps", HIDDEN, "const bool empty = s_.steps.batch_size(t) <= b;",
        "const bool empty = false;", LENGTHS),
    rnn(
        "weights in place of the other direction", FORWARD, "w_.hh(g.direction).as_stored", "w_.hh(0).as_stored"),
    rnn(
        "rows beyond a group left out", FORWARD, "first < batch.end; first += most)",
        "first < smaller(batch.end, batch.begin + 1); first += most)"),
    rnn(
        "rows as columns of the other direction", FORWARD, "(direction * panels() + b / kPanel<T>)",
        "(0 * panels() + b / kPanel<T>)"),
    gru(
        "a product with columns added to another sum", FORWARD, "transposed + Cell::hidden_sum(gate) * kSize",
        "transposed + gate * kSize"),
    lstm(
        "the projection of the other direction", FORWARD, "w_.projection(direction) + column",
        "w_.projection(0) + column"),
    rnn(
        "threads that do not meet after a step", FORWARD,
        "      team.wait(work.team_size, work.rank);\n      if (w_.projected) {",
        "      if (w_.projected) {", THREADS),
    rnn(
        "the last terms of a product in place left out", "csrc/cpu/recurrent/gate_sums.h",
        "if (k < depth) add(k, depth - k);", ""),
    rnn("a recurrent bias left out", PACKED, "? of_input + of_hidden : of_input", "? of_input : of_input"),
    gru(
        "the candidate's recurrent bias left out", PACKED,
        "if (sum != gate) packed[sum * width + lane] = of_hidden;",
        "if (sum != gate) packed[sum * width + lane] = T(0);"),
    rnn(
        "half a pair of bfloat16 that is not zero", "csrc/cpu/kit/pairs.h",
        "pairs[count / 2] = 0.0f;", "pairs[count / 2] = 0.0f / 0.0f;", type="float"),
    rnn(
        "hidden values of the step before the last, where the output is rounded", HIDDEN,
        "hidden(direction, step.t + 1, step.previous_first, b)", "hidden(direction, step.t, step.previous_first, b)",
        type="float"),
    lstm(
        "a projected output that is not rounded", FORWARD,
        "states_.round_to_output(direction, step, {b, b + tile_rows()}, {column, column + left});", "", type="float"),
    lstm(
        "a distance from 1 that a saved gate loses", SAVED, "Vec<float>(0x1p-60f)", "Vec<float>(0x1p-9f)", VALUES,
        "float"),
    rnn(
        "input weights from the wrong row", PACKED, "target + Cell::kGates * inputs * kWidth);",
        "target + (Cell::kGates * inputs - 1) * kWidth);"),
    Fault(
        "a later step chosen to read the input first", "csrc/cpu/recurrent/plan.h",
        "constexpr int64_t kFusedRows = 4;", "constexpr int64_t kFusedRows = 5;",
        ("tests/operators/test_cpu_plan.py",), "bindings.cpp",
    ),
]  # fmt: skip

GRADIENTS = [
    lstm(
        "the gradient of c at every step left out", BACKWARD,
        "if (at.grad_cells) grads[1] += load(at.grad_cells, at.units);", "", STATES),
    rnn(
        "a late start's gradient of h0 from other rows", BACKWARD,
        "multiply_hh(tile, direction, following, b, column, next, offset / tile_rows());\n"
        "      if (Cell::kReadsHidden)",
        "multiply_hh(tile, direction, following, offset, column, next, 0);\n      if (Cell::kReadsHidden)"),
    gru(
        "the update gate's part of the gradient of h0 left out", BACKWARD,
        "if (Cell::kReadsHidden) tile.add(grad_h, s_.output_size, count);", ""),
    rnn(
        "late starts left out of a product in place", BACKWARD,
        "intersect(work.batch, {0, following.rows}), columns, memory);",
        "intersect(work.batch, {0, continuing}), columns, memory);"),
    rnn(
        "the gradient of h0 of sequences without that step", BACKWARD,
        "intersect(work.batch, {continuing, following.rows}));",
        "intersect(work.batch, {continuing, s_.steps.batch}));"),
    rnn(
        "the gradient of h_n left out", BACKWARD, "if (!has_following || Cell::kReadsHidden)",
        "if (Cell::kReadsHidden)"),
    lstm(
        "a late start that reads c of another sequence", BACKWARD,
        "const bool has_previous = b + r < step.previous_rows;", "const bool has_previous = step.previous_rows > 0;"),
    gru(
        "gates' products in place that overwrite one another", BACKWARD, ".accumulate = gate > 0};",
        ".accumulate = false};"),
    rnn(
        "packed weights of the other direction", BACKWARD, "weight = {p_.weights[d].hh, ",
        "weight = {p_.weights[0].hh, "),
    rnn(
        "threads that do not meet after a step backwards", BACKWARD,
        "      team.wait(work.team_size, work.rank);\n    }\n  }\n\n  // The distance of the gradients",
        "    }\n  }\n\n  // The distance of the gradients", THREADS),
    rnn(
        "the input's gradient of the last direction only", WEIGHTS,
        ".accumulate = d > 0 || gate > 0},", ".accumulate = gate > 0},"),
    rnn(
        "a rounded gradient of the first direction alone", WEIGHTS,
        "d + 1 == s_.directions && gate + count == Cell::kGates", "d == 0 && gate + count == Cell::kGates",
        type="float"),
    rnn(
        "many rows of which the first part has a gradient", WEIGHTS,
        "p_.grad_input && part < input_parts_; ++part", "p_.grad_input && part < 1; ++part", type="float"),
    rnn(
        "the reverse direction's weight gradient from the wrong steps", WEIGHTS,
        "direction == 0 ? output : output + batch * total, total, true, true);", "output, total, true, true);"),
    rnn(
        "a late start's weight gradient from another h0", WEIGHTS, ": h0 + b * size;", ": h0;"),
    rnn(
        "both directions' weight gradients from one h0", WEIGHTS, "Stored* h0 = p_.h0 + direction * batch * size;",
        "Stored* h0 = p_.h0;"),
    lstm(
        "half a pair of gradients that is not zero", PACKING, "packed[(row + 1) * pairs - 1] = 0.0f;",
        "packed[(row + 1) * pairs - 1] = 0.0f / 0.0f;", type="float"),
    lstm(
        "gradients of gates taken for neighbours that a gap parts", WEIGHTS, "hidden % terms == 0 ? run.count : 1;",
        "run.count;", type="float"),
    lstm(
        "the projection's gradient without tanh", WEIGHTS, "gate * Activation::tanh(cell)", "gate * cell"),
]  # fmt: skip

REPLACED_STATES = [
    rnn(
        "a reset one step late", HIDDEN, "if (p_.resets.before(direction, step.first_row + b))\n      return",
        "if (p_.resets.before(direction, step.previous_first + b))\n      return", RESETS),
    rnn(
        "a reset one step early", HIDDEN, "if (p_.resets.before(direction, step.first_row + b))\n      return",
        "if (p_.resets.before(direction, smaller(step.first_row + step.rows + b, p_.resets.rows - 1)))\n      return",
        RESETS),
    lstm(
        "c that a reset leaves", HIDDEN,
        "if (!p_.c_n || !p_.resets.before(direction, step.first_row + b)) continue;", "continue;", RESETS),
    rnn(
        "a gradient that passes a reset", BACKWARD, "for (int64_t i = 0; i < count; ++i) from[i] = T(0);", "", RESETS),
    lstm(
        "a gradient of c that passes a reset", BACKWARD, "if (Cell::kStates == 2 && replaced)",
        "if (Cell::kStates == 3 && replaced)", RESETS),
    rnn(
        "a gradient of reset states that is not a sum", BACKWARD, "to[i] += from[i];", "to[i] = from[i];", RESETS),
    rnn(
        "a weight gradient from what a reset replaced", WEIGHTS,
        "if (p_.resets.before(direction, step.first_row + b))", "if (false)", RESETS),
    rnn(
        "reset states of the step before", "csrc/params/resets.h", "(every_step ? t + direction : 0)",
        "(every_step ? t : 0)", RESETS),
]  # fmt: skip

FAULTS = [*PRODUCTS, *ACTIVATIONS, *CELLS, *STEPS, *GRADIENTS, *REPLACED_STATES]
