// The hidden values of the steps of a recurrent layer, for the forward loop: where a step writes them, and where the
// next one finds those before it.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/kit/pairs.h"
#include "cpu/kit/parallel.h"
#include "cpu/kit/scratch.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/schedule.h"
#include "params/layer.h"

namespace fused_rnn::cpu {
namespace {

// Hidden values are computed and read as T. They are the output of the layer or, if that is rounded to Stored, are kept
// beside it until the next step has read them.
template <typename T, typename Stored>
class HiddenStates {
 public:
  explicit HiddenStates(const RecurrentForwardParams<T, Stored>& params)
      : p_(params), s_(params.sizes), hidden_(kRounds ? 2 * s_.directions * s_.steps.batch * s_.output_size : 0) {}

  // Returns the output of a batch row in the step that begins at row `first_row`; rows are output_row() apart.
  Stored* output(int64_t direction, int64_t first_row, int64_t b) const {
    return p_.output + (first_row + b) * output_row() + direction * s_.output_size;
  }
  int64_t output_row() const { return s_.directions * s_.output_size; }

  // Returns the hidden values of a batch row in step t, which begins at row `first_row`: its output, unless that is not
  // of type T. Rows are hidden_row() apart.
  T* hidden(int64_t direction, int64_t t, int64_t first_row, int64_t b) {
    if constexpr (kRounds)
      return hidden_.data() + ((t % 2 * s_.directions + direction) * s_.steps.batch + b) * s_.output_size;
    else
      return output(direction, first_row, b);
  }
  int64_t hidden_row() const { return kRounds ? s_.output_size : output_row(); }

  // Returns the hidden values before a step of batch row b, and of the rows behind it if no state is replaced there.
  const T* previous(int64_t direction, const Step& step, int64_t b) {
    if (p_.resets.before(direction, step.first_row + b))
      return p_.reset_h + p_.resets.state(direction, step.t, b) * s_.output_size;
    return b < step.previous_rows ? hidden(direction, step.t + 1, step.previous_first, b)  // t + 1 is as even as t - 1
                                  : p_.h0 + (direction * s_.steps.batch + b) * s_.output_size;
  }

  // If states of the given batch rows are replaced before a step, copies the hidden values of all these rows before the
  // step to `hidden`, [batch, output_size], replaced ones among them, so that the products find them side by side; and
  // replaces the cell states of the given units. Returns whether it does so.
  bool replace(int64_t direction, const Step& step, Range batch, Range units, T* hidden) {
    if (!any_reset(p_.resets, direction, step, batch)) return false;
    for (int64_t b = batch.begin; b < batch.end; ++b) {
      std::memcpy(hidden + b * s_.output_size, previous(direction, step, b),
                  static_cast<size_t>(s_.output_size) * sizeof(T));
      if (!p_.c_n || !p_.resets.before(direction, step.first_row + b)) continue;
      std::memcpy(p_.c_n + (direction * s_.steps.batch + b) * s_.hidden_size + units.begin,
                  p_.reset_c + p_.resets.state(direction, step.t, b) * s_.hidden_size + units.begin,
                  static_cast<size_t>(units.size()) * sizeof(T));
    }
    return true;
  }

  // Rounds hidden values of a step, of the given batch rows and columns, to the output, if that is not of type T.
  void round_to_output(int64_t direction, const Step& step, Range batch, Range columns) {
    if constexpr (kRounds)
      for (int64_t b = batch.begin; b < batch.end; ++b)
        for (int64_t column = columns.begin; column < columns.end; column += kLanes<T>) {
          const int64_t lanes = smaller(columns.end - column, kLanes<T>);
          Pairs::store_terms(output(direction, step.first_row, b) + column,
                             load(hidden(direction, step.t, step.first_row, b) + column, lanes), lanes);
        }
  }

  // Writes h_n: the output of each sequence's last step in this direction, or h0 for a sequence without steps.
  void copy_last(int64_t direction, const ThreadWork& work) {
    const Range columns = share(s_.output_size, work.rank, work.team_size);
    const int64_t size = s_.output_size;
    int64_t t = direction == 0 ? s_.steps.time - 1 : 0;
    for (int64_t b = work.batch.begin; b < work.batch.end; ++b) {
      while (t > 0 && s_.steps.batch_size(t) <= b) --t;
      const bool empty = s_.steps.batch_size(t) <= b;
      const T* last =
          empty ? p_.h0 + (direction * s_.steps.batch + b) * size : hidden(direction, t, s_.steps.first_row(t), b);
      std::memcpy(p_.h_n + (direction * s_.steps.batch + b) * size + columns.begin, last + columns.begin,
                  static_cast<size_t>(columns.size()) * sizeof(T));
    }
  }

 private:
  static constexpr bool kRounds = !std::is_same_v<T, Stored>;

  const RecurrentForwardParams<T, Stored>& p_;
  const RecurrentSizes& s_;
  Scratch<T> hidden_;  // [2, directions, batch, output_size]: of even and of odd steps, if the output is rounded
};

}  // namespace
}  // namespace fused_rnn::cpu
