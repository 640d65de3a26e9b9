// The Python module fused_rnn._C: facts about the build and the machine. Loading it registers the operators of ops/.

#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include "cells/cells.h"
#include "cpu/recurrent/plan.h"
#include "ops/dispatch.h"
#include "ops/layer.h"
#include "ops/mask_type.h"
#include "ops/plain_call.h"
#include "ops/threads.h"

#ifdef FUSED_RNN_CUDA
#include "cuda/conv/mma_plan.h"
#include "cuda/kit/device_info.h"
#include "cuda/persistent/estimate.h"
#include "ops/cuda/convolution_kernels.h"
#include "ops/cuda/persistent.h"
#include "ops/cuda/rectangles.h"
#include "ops/cuda/torch_cuda.h"
#endif

namespace py = pybind11;

namespace {

// Returns what fused_rnn.show_config() prints.
py::dict build_info() {
  py::list capabilities;
  capabilities.append("DEFAULT");
#ifdef FUSED_RNN_HAS_AVX2
  capabilities.append("AVX2");
#endif
#ifdef FUSED_RNN_HAS_AVX512
  capabilities.append("AVX512");
#endif
  py::dict info;
  info["compiler"] = "g++ " __VERSION__;
  info["cpu_capabilities"] = capabilities;
  info["cpu_capability"] = at::get_cpu_capability();
  info["multiplies_pairs"] = fused_rnn::ops::multiplies_pairs();
#ifdef FUSED_RNN_CUDA
  info["cuda_version"] = fused_rnn::cuda::toolkit_version();
  info["cuda_archs"] = FUSED_RNN_CUDA_ARCHS;
  info["cuda_devices"] = fused_rnn::cuda::device_count();
#else
  info["cuda_version"] = py::none();
  info["cuda_archs"] = "";
  info["cuda_devices"] = 0;
#endif
  return info;
}

// Returns the structure of each cell by its name; csrc/cells/cells.h says what the members mean.
py::dict cells() {
  py::dict all;
  for (const fused_rnn::cells::Description& cell : fused_rnn::cells::kDescriptions) {
    py::dict one;
    one["gates"] = cell.gates;
    one["sums"] = cell.sums;
    one["states"] = cell.states;
    one["hidden_sums"] = py::tuple(py::cast(std::vector<int>(cell.hidden_sums, cell.hidden_sums + cell.gates)));
    one["reads_hidden"] = cell.reads_hidden;
    one["may_project"] = cell.may_project();
    all[cell.name] = one;
  }
  return all;
}

// Returns the plan of a layer on the CPU, for an instruction set with `lanes` values in a vector and `max_rows` rows in
// a tile.
py::dict cpu_plan(const std::string& cell, int64_t time, int64_t batch, int64_t input_size, int64_t hidden_size,
                  int64_t directions, int64_t threads, int64_t lanes, int64_t max_rows) {
  namespace cpu = fused_rnn::cpu;
  const fused_rnn::cells::Description structure = describe(fused_rnn::ops::kind_of(cell));
  const fused_rnn::RecurrentSizes sizes = {
      {time, batch, nullptr, nullptr}, input_size, hidden_size, hidden_size, directions, threads};
  const cpu::ForwardPlan forward = cpu::plan_forward(structure, sizes, {lanes, max_rows});
  const cpu::BackwardPlan backward = cpu::plan_backward(structure, sizes, {lanes, max_rows});
  const char* const uses[] = {"in place", "transposed", "packed before"};
  py::dict plan;
  plan["weights"] = uses[static_cast<int>(forward.weights)];
  plan["input_first"] = forward.input_first;
  plan["block_units"] = forward.block_units;
  plan["threads"] = forward.threads;
  plan["backward_weights"] = backward.weights_in_place ? "in place" : "packed before";
  plan["backward_threads"] = backward.threads;
  return plan;
}

// Appends the tensors of a list or tuple, and returns whether all are plain: objects of torch.Tensor or
// torch.nn.Parameter, not of other subclasses, which may do something else.
bool append_plain(py::handle sequence, std::vector<at::Tensor>& tensors) {
  const py::object fast = py::reinterpret_steal<py::object>(PySequence_Fast(sequence.ptr(), "expected a sequence"));
  if (!fast) throw py::error_already_set();
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(fast.ptr());
  PyObject** const items = PySequence_Fast_ITEMS(fast.ptr());
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!THPVariable_CheckExact(items[i])) return false;
    tensors.push_back(THPVariable_Unpack(items[i]));
  }
  return true;
}

// Returns the tensors of compute() in a tuple, or None if there are none. Other threads may run Python meanwhile.
template <typename Compute>
py::object without_python(const Compute& compute) {
  std::optional<std::vector<at::Tensor>> results;
  {
    const py::gil_scoped_release others_may_run;
    results = compute();
  }
  if (!results) return py::none();
  py::tuple wrapped(results->size());
  for (size_t i = 0; i < results->size(); ++i)
    wrapped[i] = py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move((*results)[i])));
  return wrapped;
}

// Runs a recurrent network if the call is plain, see ops/plain_call.h, and returns the output and the final states in a
// tuple; else returns None. `states` is a sequence of tensors or None.
py::object plain_recurrent(const std::string& cell, py::handle input, py::handle states, py::handle weights,
                           int64_t layers, int64_t directions, bool batch_first) {
  if (!THPVariable_CheckExact(input.ptr())) return py::none();
  const at::Tensor& values = THPVariable_Unpack(input.ptr());
  std::vector<at::Tensor> initial, all_weights;
  initial.reserve(2);
  all_weights.reserve(4);
  if (!states.is_none() && !append_plain(states, initial)) return py::none();
  if (!append_plain(weights, all_weights)) return py::none();
  return without_python([&] {
    return fused_rnn::ops::plain_recurrent(cell, values, initial, all_weights, layers, directions, batch_first);
  });
}

// The same with packed weights; `weights` are those that were packed.
py::object plain_frozen(py::handle input, py::handle states, py::handle weights, py::handle packed, bool batch_first) {
  std::vector<at::Tensor> initial, all_weights;
  if (!THPVariable_CheckExact(input.ptr()) || !THPVariable_CheckExact(packed.ptr())) return py::none();
  if (!states.is_none() && !append_plain(states, initial)) return py::none();
  if (!append_plain(weights, all_weights)) return py::none();
  return without_python([&] {
    return fused_rnn::ops::plain_frozen(THPVariable_Unpack(input.ptr()), initial, all_weights,
                                        THPVariable_Unpack(packed.ptr()), batch_first);
  });
}

// Returns the name of the first weight that is no longer what was packed and how it changed, or None. Each of `watched`
// is (name, weight, version or None, address) of when it was packed; `listed` are the weights that the module computes
// with, and `attributes` its attributes, among which are the `parameters`. It is C++ since it precedes each call.
py::object find_change(const py::list& watched, const py::dict& parameters, const py::dict& attributes,
                       const py::list& listed) {
  if (watched.size() != listed.size())
    throw py::value_error("the module has another number of weights than were packed");
  for (size_t i = 0; i < watched.size(); ++i) {
    const auto entry = py::reinterpret_borrow<py::tuple>(watched[i]);
    const py::object name = entry[0], weight = entry[1], version = entry[2];
    const bool same = PyDict_GetItem(parameters.ptr(), name.ptr()) == weight.ptr() &&
                      PyList_GET_ITEM(listed.ptr(), i) == weight.ptr() &&
                      PyDict_GetItem(attributes.ptr(), name.ptr()) == nullptr;
    if (!same) return py::make_tuple(name, "replaced");
    const at::Tensor& values = THPVariable_Unpack(weight.ptr());
    const bool written = !version.is_none() && values._version() != version.cast<uint32_t>();
    const bool moved = reinterpret_cast<uintptr_t>(values.const_data_ptr()) != entry[3].cast<uintptr_t>();
    if (written || moved) return py::make_tuple(name, "written to");
  }
  return py::none();
}

#ifdef FUSED_RNN_CUDA
using fused_rnn::cuda::Path;

Path path_of(const std::string& name) {
  if (name == "any") return Path::kAny;
  if (name == "stepwise") return Path::kStepwise;
  if (name == "cluster") return Path::kCluster;
  if (name == "grid") return Path::kGrid;
  if (name == "warpgroup") return Path::kWarpgroup;
  throw py::value_error("path must be any, stepwise, cluster, grid or warpgroup, not " + name);
}

// Restricts which plans of the persistent kernels may be chosen from now on, for tests and tuning. 0 means any value;
// for chunks_in_registers, where 0 is a possible value, -1 does.
void set_plan_override(const std::string& path, int blocks, int groups, int batch_tiles, int chunks_in_registers,
                       int split) {
  fused_rnn::ops::current_plan_override() = {path_of(path), blocks, groups, batch_tiles, chunks_in_registers, split};
}

// Restricts what may compute masked convolutions from now on, for tests and tuning.
void set_convolution_path(const std::string& path) {
  using fused_rnn::ops::ConvolutionPath;
  if (path != "any" && path != "mma" && path != "rectangles")
    throw py::value_error("path must be any, mma or rectangles, not " + path);
  fused_rnn::ops::set_convolution_path(path == "any"   ? ConvolutionPath::kAny
                                       : path == "mma" ? ConvolutionPath::kMma
                                                       : ConvolutionPath::kRectangles);
}

// Returns what plans are made for: what a GPU has.
py::dict cuda_device(int index) {
  const fused_rnn::cuda::Device device = fused_rnn::cuda::device_at(index);
  py::dict result;
  result["multiprocessors"] = device.multiprocessors;
  result["shared_bytes"] = device.shared_bytes;
  result["clusters"] = std::vector<int>(std::begin(device.clusters), std::end(device.clusters));
  return result;
}

// Returns the plan of one pass over a layer on a GPU, and the hidden size that it is padded to; for the stepwise path,
// the reason why no persistent kernel is used.
py::dict cuda_plan(const std::string& cell, int element_bytes, int64_t batch, int64_t hidden_size, int64_t directions,
                   bool backward, bool projected, int64_t time, int device) {
  fused_rnn::RecurrentSizes sizes = {};
  sizes.steps = {time, batch, nullptr, nullptr};
  sizes.hidden_size = hidden_size;
  sizes.directions = directions;
  const auto [problem, gpu, plan] = fused_rnn::ops::plan_pass(describe(fused_rnn::ops::kind_of(cell)), sizes,
                                                              element_bytes, projected, backward, device);
  py::dict result;
  if (plan.blocks == 0) {
    result["path"] = "stepwise";
    result["reason"] = why_stepwise(problem, fused_rnn::ops::current_plan_override());
    return result;
  }
  result["path"] = plan.split > 0 ? "warpgroup" : plan.cluster ? "cluster" : "grid";
  result["hidden_size"] = problem.hidden_size;
  result["blocks"] = plan.blocks;
  result["groups"] = plan.groups;
  result["units"] = plan.units;
  result["sequences"] = plan.sequences;
  result["row_tiles"] = plan.row_tiles;
  result["batch_tiles"] = plan.batch_tiles;
  result["chunks_in_registers"] = plan.chunks_in_registers;
  result["split"] = plan.split;
  result["launches"] = directions / plan.directions;
  result["shared_bytes"] = fused_rnn::cuda::shared_layout(plan, problem).total;
  // Of the kernels in which warpgroups multiply, none has been measured, so there is no estimate.
  if (plan.split == 0) result["microseconds"] = fused_rnn::cuda::estimate_step(plan, problem, gpu);
  return result;
}

// Returns how a GPU computes each pass over a masked convolution of images [batch, in_channels, height, width].
py::dict cuda_masked_conv2d_plan(const std::vector<int64_t>& input, const std::vector<int64_t>& weight,
                                 const std::string& mask_type, int64_t data_channels, int64_t dilation_height,
                                 int64_t dilation_width, int element_bytes, int device) {
  using fused_rnn::cuda::Kernels;
  fused_rnn::MaskedConv2dSizes sizes = {input.at(0),  input.at(2),  input.at(3),     input.at(1),    weight.at(0),
                                        weight.at(2), weight.at(3), dilation_height, dilation_width, data_channels};
  fused_rnn::ops::set_mask(sizes, mask_type);
  py::dict plan;
  const auto type = element_bytes == 2 ? at::kHalf : element_bytes == 4 ? at::kFloat : at::kDouble;
  const auto choice = fused_rnn::ops::choose_kernels(sizes, type, static_cast<c10::DeviceIndex>(device));
  const fused_rnn::cuda::Device gpu = fused_rnn::cuda::device_at(device);
  py::dict passes;
  const auto add = [&](const char* name, Kernels kernels, const auto& plan_boxes, const auto& plan_first,
                       const auto& plan_mma) {
    py::dict pass;
    if (kernels == Kernels::kBoxes) {
      const auto plan = plan_boxes();
      pass["rows"] = plan.rows;
      pass["channels"] = plan.channel_groups * fused_rnn::cuda::kChannels;
      pass["blocks"] = plan.blocks;
      pass["shared_bytes"] = plan.shared_bytes;
    } else if (kernels == Kernels::kFirstLayer) {
      const auto plan = plan_first();
      pass["blocks"] = plan.blocks;
      pass["shared_bytes"] = plan.shared_bytes;
    } else if (kernels == Kernels::kMma) {
      const auto plan = plan_mma();
      pass["mma_channels"] = plan.channels;
      pass["blocks"] = plan.blocks();
      pass["shared_bytes"] = plan.shared_bytes();
    } else {
      pass["rectangles"] = fused_rnn::ops::active_rectangles(sizes).size();
      pass["reason"] = choice.reason;
    }
    passes[name] = pass;
  };
  const auto first = [&] { return plan_first_layer(sizes, gpu); };
  add(
      "forward", choice.forward, [&] { return plan_correlation(sizes, sizes.out_channels, gpu); }, first,
      [&] { return plan_mma_correlation(sizes, sizes.out_channels, gpu); });
  add(
      "input gradient", choice.input_gradient, [&] { return plan_correlation(sizes, sizes.in_channels, gpu); }, first,
      [&] { return plan_mma_correlation(sizes, sizes.in_channels, gpu); });
  add(
      "parameter gradients", choice.parameter_gradients, [&] { return plan_weight_gradient(sizes, gpu); },
      [&] { return plan_first_layer_gradient(sizes, gpu); }, [&] { return plan_mma_weight_gradient(sizes, gpu); });
  return passes;
}
#endif

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Registers torch.ops.fused_rnn.* and tells how it was built.";
  module.attr("MOST_UNITS_IN_FLOAT32") = fused_rnn::ops::kMostUnitsInFloat32;
  module.def("build_info", &build_info);
  module.def("cells", &cells);
  module.def("plain_recurrent", &plain_recurrent, py::arg("cell"), py::arg("input"), py::arg("states"),
             py::arg("weights"), py::arg("layers"), py::arg("directions"), py::arg("batch_first"));
  module.def("plain_frozen", &plain_frozen, py::arg("input"), py::arg("states"), py::arg("weights"), py::arg("packed"),
             py::arg("batch_first"));
  module.def("find_change", &find_change, py::arg("watched"), py::arg("parameters"), py::arg("attributes"),
             py::arg("listed"));
  module.def("set_debug", &fused_rnn::ops::set_debug);
  module.def("most_threads", &fused_rnn::ops::most_threads);
  module.def("set_processors", &fused_rnn::ops::set_processors, py::arg("processors"));
  module.def("cpu_plan", &cpu_plan, py::kw_only(), py::arg("cell"), py::arg("time"), py::arg("batch"),
             py::arg("input_size"), py::arg("hidden_size"), py::arg("directions"), py::arg("threads"), py::arg("lanes"),
             py::arg("max_rows"));
#ifdef FUSED_RNN_CUDA
  module.def("set_plan_override", &set_plan_override, py::arg("path") = "any", py::arg("blocks") = 0,
             py::arg("groups") = 0, py::arg("batch_tiles") = 0, py::arg("chunks_in_registers") = -1,
             py::arg("split") = 0);
  module.def("cuda_plan", &cuda_plan, py::arg("cell"), py::arg("element_bytes"), py::arg("batch"),
             py::arg("hidden_size"), py::arg("directions"), py::arg("backward"), py::arg("projected"), py::arg("time"),
             py::arg("device") = 0);
  module.def("cuda_masked_conv2d_plan", &cuda_masked_conv2d_plan, py::arg("input"), py::arg("weight"),
             py::arg("mask_type"), py::arg("data_channels"), py::arg("dilation_height"), py::arg("dilation_width"),
             py::arg("element_bytes"), py::arg("device") = 0);
  module.def("set_convolution_path", &set_convolution_path, py::arg("path"));
  module.def("cuda_device", &cuda_device, py::arg("index") = 0);
  module.def("multiprocessor_limit", &fused_rnn::ops::multiprocessor_limit);
  module.def("set_multiprocessor_limit", &fused_rnn::ops::set_multiprocessor_limit);
  module.def("finds_cublas", &fused_rnn::ops::finds_cublas);
#endif
}
