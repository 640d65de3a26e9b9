// How copies of boxes and matrix instructions lay out shared memory: in rows of 128 bytes, where the 16-byte chunk c of
// the row at address a is stored as chunk c ^ (a / 128 % 8), so that columns of chunks are read without bank conflicts.

#pragma once

namespace fused_rnn::cuda {

constexpr int kRowBytes = 128;
constexpr int kAlignment = 1024;  // after so many bytes the order of the chunks repeats

}  // namespace fused_rnn::cuda
