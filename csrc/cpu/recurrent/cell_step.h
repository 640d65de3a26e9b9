// One step of a cell, forward, for a vector of hidden units. The cell is a struct of cells/.

#pragma once

#include <cstdint>
#include <type_traits>

#include "cells/cells.h"
#include "cpu/kit/activation.h"
#include "cpu/kit/pairs.h"
#include "cpu/kit/tile.h"
#include "cpu/recurrent/saved_values.h"

namespace fused_rnn::cpu {
namespace {

// The addresses that one step reads and writes for one vector of hidden units of a row.
template <typename T, typename Stored>
struct CellPointers {
  const T* previous;  // hidden values of the previous step
  T* hidden;          // hidden values of this step
  Stored* output;     // the same, rounded; null if Stored is T, or if the values are projected first
  T* cell;            // cell states, updated in place; null for a cell without a cell state
  Stored* gates;      // the first of kSums values saved for backward, hidden_size apart; null if nothing is saved
  T* cells;           // the cell states after this step, for backward or the caller; null if they are not wanted
  int64_t hidden_size;
  int64_t units;  // how many lanes of the vector are hidden units
};

// Computes one step of a vector of hidden units, whose sums lie `stride` apart.
template <typename Cell, typename T, typename Stored>
FUSED_RNN_INLINE inline void step_cell(const T* sums, int64_t stride, const CellPointers<T, Stored>& at) {
  Vec<T> values[Cell::kSums], states[Cell::kStates];
  unroll<Cell::kSums>([&](auto i) FUSED_RNN_INLINE { values[i] = Vec<T>::loadu(sums + i * stride); });
  if constexpr (Cell::kReadsHidden) states[0] = load(at.previous, at.units);
  if constexpr (Cell::kStates == 2) states[1] = load(at.cell, at.units);
  Cell::template forward<Activation>(values, states);
  if constexpr (Cell::kStates == 2) store(at.cell, states[1], at.units);
  store(at.hidden, states[0], at.units);
  if constexpr (!std::is_same_v<T, Stored>)
    if (at.output) Pairs::store_terms(at.output, states[0], at.units);
  if (at.gates) {
    unroll<Cell::kSums>(
        [&](auto i) FUSED_RNN_INLINE { save<Cell::bounded(i)>(at.gates + i * at.hidden_size, values[i], at.units); });
  }
  if constexpr (Cell::kStates == 2)
    if (at.cells) store(at.cells, states[1], at.units);
}

}  // namespace
}  // namespace fused_rnn::cpu
