// Where the states of a recurrent layer are replaced between two steps, such as where an episode ends and another one
// begins. The steps from one reset to the next are a segment, and each direction runs each segment on its own: the
// first direction has its states replaced before a segment's first step, the second one, which reads segments
// backwards, before a segment's last step, if another segment follows.

#pragma once

#include <cstdint>

namespace fused_rnn {

struct Resets {
  const bool* begins;  // [directions, rows]: whether a direction's states are replaced before a row's step; null if no
                       // states are replaced. Rows of steps that a sequence does not have are not read
  int64_t rows, directions, batch;
  bool every_step;  // whether each step has states of its own that replace others, else all steps share them

  // Whether the states of a direction are replaced before the step of a row.
  constexpr bool before(int64_t direction, int64_t row) const { return begins && begins[direction * rows + row]; }
  // Returns the row of the states that do so, in an array [directions * batch, size], or [time * directions * batch,
  // size] if each step has states of its own. Those of step t replace states between the steps t - 1 and t, in both
  // directions.
  constexpr int64_t state(int64_t direction, int64_t t, int64_t sequence) const {
    return ((every_step ? t + direction : 0) * directions + direction) * batch + sequence;
  }
};

}  // namespace fused_rnn
