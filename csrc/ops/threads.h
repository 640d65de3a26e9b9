// How many threads the kernels on a CPU use.

#pragma once

#include <cstdint>

namespace fused_rnn::ops {

// Returns the most threads that a kernel may use: as many as torch may, but not more than there are processors. More
// would only take turns on them, and wherever they meet, as after each step of a recurrent layer, all would wait for
// all turns.
int64_t most_threads();

// Sets the number of processors that most_threads() assumes, for tests; 0 for those that this process may use.
void set_processors(int64_t processors);

}  // namespace fused_rnn::ops
