// The types of masks, of which fused_rnn/reference/masked_conv2d.py has the definition.

#pragma once

#include <string_view>

#include "params/masked_conv2d.h"

namespace fused_rnn::ops {

// In the order of MASK_TYPES in the definition, by which fused_rnn/functional/pixel_network.py numbers them.
inline constexpr std::string_view kMaskTypes[] = {"A", "B", "vertical_A", "vertical_B"};

inline bool is_vertical(std::string_view mask_type) { return mask_type == "vertical_A" || mask_type == "vertical_B"; }

// Sets which taps are active; the sizes of the kernel and the number of groups have been set.
inline void set_mask(MaskedConv2dSizes& sizes, std::string_view mask_type) {
  sizes.own_group = mask_type == "B";
  if (is_vertical(mask_type))
    sizes.dense_taps = (sizes.kernel_height / 2 + (mask_type == "vertical_B")) * sizes.kernel_width;
  else
    sizes.dense_taps = sizes.centre() + (sizes.own_group && !sizes.centre_depends_on_groups());
}

}  // namespace fused_rnn::ops
