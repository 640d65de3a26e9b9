// Masked convolution on an NVIDIA GPU: the kernels of conv/. First those for compute capability 9.0, in bfloat16 and
// float16.

#pragma once

#include "cuda/conv/mma_plan.h"
#include "cuda/conv/plan.h"
#include "params/masked_conv2d.h"

namespace fused_rnn::cuda {

// Each starts kernels on a stream (a cudaStream_t) and returns null, or what is wrong. All arrays are in device memory,
// of two-byte values, and live until the kernels have run. choose_kernels must have named the kernels for the sizes.
// Images are channels last, and their addresses multiples of 16. Weights that are read have in_stride 1, and other
// strides that are multiples of 8. Gradients of weights have any strides.

// Computes the forward pass, with the activation kNone or kReLU, without residual and sums.
const char* masked_conv2d(bool bfloat16, const MaskedConv2dForwardParams<void>& params, const CorrelationPlan& plan,
                          void* stream);

const char* masked_conv2d_input_gradient(bool bfloat16, const MaskedConv2dInputGradientParams<void>& params,
                                         const CorrelationPlan& plan, void* stream);

// Computes the gradients of the weight and of the bias. `scratch` is memory of
// plan.scratch_values() float32 values, which need not be initialised.
const char* masked_conv2d_parameter_gradients(bool bfloat16, const MaskedConv2dParameterGradientsParams<void>& params,
                                              float* scratch, const WeightGradientPlan& plan, void* stream);

// The same for a first layer. Its input may have any strides, in elements; so may its weight.
struct ImageStrides {
  int64_t batch, channel, row, column;
};
const char* first_layer(bool bfloat16, const MaskedConv2dForwardParams<void>& params, const ImageStrides& strides,
                        const FirstLayerPlan& plan, void* stream);
const char* first_layer_parameter_gradients(bool bfloat16, const MaskedConv2dParameterGradientsParams<void>& params,
                                            const ImageStrides& strides, float* scratch, const FirstLayerPlan& plan,
                                            void* stream);

// The kernels for GPUs without those, which multiply values of this type. Strides of weights that are read are
// multiples of 16 bytes.
enum class MmaType { kBFloat16, kFloat16, kTF32 };
const char* mma_masked_conv2d(MmaType type, const MaskedConv2dForwardParams<void>& params,
                              const MmaCorrelationPlan& plan, void* stream);
const char* mma_masked_conv2d_input_gradient(MmaType type, const MaskedConv2dInputGradientParams<void>& params,
                                             const MmaCorrelationPlan& plan, void* stream);
// For bfloat16 and float16.
const char* mma_masked_conv2d_parameter_gradients(MmaType type,
                                                  const MaskedConv2dParameterGradientsParams<void>& params,
                                                  float* scratch, const MmaWeightGradientPlan& plan, void* stream);

}  // namespace fused_rnn::cuda
