// The schema of every operator, one line each. Shapes and meaning are told in fused_rnn/ops/, checks are in the glue.

#include <torch/library.h>

TORCH_LIBRARY(fused_rnn, library) {
  // clang-format off
  library.def("lstm(Tensor input, Tensor h0, Tensor c0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, bool save_states) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor gates, Tensor cells)");
  library.def("lstm_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, Tensor? grad_cells, Tensor input, Tensor h0, Tensor c0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, Tensor output, Tensor gates, Tensor cells, bool input_grad, bool state_grad, bool weight_grad) -> (Tensor grad_input, Tensor grad_h0, Tensor grad_c0, Tensor[] grad_weights)");
  library.def("gru(Tensor input, Tensor h0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, bool save_states) -> (Tensor output, Tensor h_n, Tensor gates)");
  library.def("gru_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor input, Tensor h0, Tensor[] weights, Tensor? batch_sizes, Tensor? lengths, Tensor output, Tensor gates, bool input_grad, bool state_grad, bool weight_grad) -> (Tensor grad_input, Tensor grad_h0, Tensor[] grad_weights)");
  library.def("masked_conv2d(Tensor input, Tensor weight, Tensor? bias, str mask_type, int data_channels, int[2] dilation) -> Tensor");
  library.def("masked_conv2d_backward(Tensor grad_output, Tensor input, Tensor weight, str mask_type, int data_channels, int[2] dilation, bool input_grad, bool weight_grad, bool bias_grad) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)");
  // clang-format on
}
