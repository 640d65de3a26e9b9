// The Python module fused_rnn._C: facts about the build and the machine. Loading it registers the operators of ops/.

#include <ATen/Version.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#ifdef FUSED_RNN_CUDA
#include "cuda/device_info.h"
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

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Registers torch.ops.fused_rnn.* and tells how it was built.";
  module.def("build_info", &build_info);
}
