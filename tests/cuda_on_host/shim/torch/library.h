// The compiler finds this before torch's own header. It lets the operators of csrc/ops/ be registered a second time, as
// torch.ops.cuda_on_host.*, for tensors on the CPU.

#pragma once

#include_next <torch/library.h>

#undef TORCH_LIBRARY
#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY(space, library) TORCH_LIBRARY_FRAGMENT(cuda_on_host, library)
#define TORCH_LIBRARY_IMPL(space, key, library) _TORCH_LIBRARY_IMPL(cuda_on_host, key, library, C10_UID)
