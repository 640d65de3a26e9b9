// The schema of every operator, one line each. fused_rnn/ops/ documents shapes and meaning; the operators' own files in
// this folder check the arguments.

#include <torch/library.h>

TORCH_LIBRARY(fused_rnn, library) {
  // clang-format off
  library.def("recurrent(str cell, Tensor input, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, bool save_for_backward, Tensor? resets=None, Tensor? reset_h=None, Tensor? reset_c=None) -> (Tensor output, Tensor[] final_states, Tensor gates, Tensor[] history)");
  library.def("recurrent_backward(str cell, Tensor? grad_output, Tensor?[] grad_final_states, Tensor?[] grad_history, Tensor input, Tensor[] states, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, Tensor? output, Tensor gates, Tensor[] history, bool input_grad, bool state_grad, bool weight_grad, Tensor? resets=None, Tensor? reset_h=None, Tensor? reset_c=None) -> (Tensor grad_input, Tensor[] grad_states, Tensor[] grad_weights)");
  library.def("recurrent_freeze(str cell, Tensor[] weights, int layers, int directions, ScalarType? dtype=None) -> Tensor");
  library.def("recurrent_frozen(Tensor input, Tensor[] states, Tensor packed, Tensor? batch_sizes=None, Tensor? lengths=None, bool return_states=False, Tensor? resets=None, Tensor? reset_h=None, Tensor? reset_c=None) -> (Tensor output, Tensor[] final_states, Tensor[] history)");
  library.def("masked_conv2d(Tensor input, Tensor weight, Tensor? bias, str mask_type, int data_channels, int[2] dilation) -> Tensor");
  library.def("masked_conv2d_fused(Tensor input, Tensor weight, Tensor? bias, Tensor? residual, str mask_type, int data_channels, int[2] dilation, str activation, bool save_for_backward) -> (Tensor output, Tensor sums)");
  library.def("masked_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, str mask_type, int data_channels, int[2] dilation, bool input_grad, bool weight_grad, bool bias_grad) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  library.def("gated_activation(Tensor input, int data_channels) -> Tensor");
  library.def("gated_activation_backward(Tensor grad_output, Tensor input, int data_channels) -> Tensor grad_input");
  library.def("pixel_network(Tensor(a!)[] values, Tensor[] parameters, Tensor packed, int[] nodes, int groups, int width, int begin, int end, Tensor(b!)? image, Tensor? observed, Tensor? uniforms, Tensor? scaled, Tensor(c!)? outputs, int distribution, float factor, float offset, float temperature) -> ()");
  library.def("pixel_network_pack(Tensor[] parameters, int[] nodes, int groups) -> Tensor");
  // clang-format on
}
