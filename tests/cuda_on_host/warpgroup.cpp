// Instructions of the four warps of a warpgroup, for the CPU: products of matrices in shared memory, shares of the
// registers; and the transposed store. See hopper_on_host.h.

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "cuda/kit/hopper.cuh"
#include "values.h"

namespace fused_rnn::cuda {
namespace host {
namespace {

constexpr int kRows = 16, kDepth = 16, kMostColumns = 256;  // of a warp's part of a product
constexpr int kChunk = 8;                                   // values in 16 bytes

// What sums are until they are waited for: a signalling NaN, which even an addition changes.
constexpr uint32_t kUnfinished = 0x7fa0'dead;

// What matrix_descriptor describes.
struct Operand {
  uint32_t address, group_bytes, column_bytes;
  bool bfloat16, depth_first;

  Operand(uint64_t descriptor, bool is_bfloat16, bool is_depth_first)
      : address(field(descriptor, 0)),
        group_bytes(field(descriptor, 32)),
        column_bytes(field(descriptor, 16)),
        bfloat16(is_bfloat16),
        depth_first(is_depth_first) {
    if (descriptor >> 49 != uint64_t(1) << (62 - 49)) fail("the descriptor is not one of rows of 128 bytes");
  }

  // Reads rows from `row` on of all depths: 8 successive depths of a row are in one chunk, or 8 successive rows of a
  // depth. `to` is [kDepth][stride].
  void read(int row, int rows, float* to, int stride) const {
    for (int r = 0; r < rows; r += depth_first ? 1 : kChunk)
      for (int k = 0; k < kDepth; k += depth_first ? kChunk : 1) {
        const uint16_t* const values = chunk(row + r, k);
        for (int i = 0; i < kChunk; ++i)
          to[(k + (depth_first ? i : 0)) * stride + r + (depth_first ? 0 : i)] =
              bfloat16 ? from_bfloat16(values[i]) : from_float16(values[i]);
      }
  }

 private:
  static uint32_t field(uint64_t descriptor, int shift) {
    return static_cast<uint32_t>(descriptor >> shift & 0x3fff) << 4;
  }

  // Where the chunk is that begins with this row and depth: the chunks of a row of 128 bytes are permuted.
  const uint16_t* chunk(int row, int depth) const {
    const auto r = static_cast<uint32_t>(row), k = static_cast<uint32_t>(depth);
    uint32_t at = address;
    if (depth_first)
      at += r / 8 * group_bytes + r % 8 * 128 + k * 2;
    else
      at += k / 8 * group_bytes + k % 8 * 128 + r / 64 * column_bytes + r % 64 * 2;
    at &= 0x3ffff;
    at ^= at / 128 % 8 * 16;
    check_seen(at, 16);
    return reinterpret_cast<const uint16_t*>(at_shared_address(at, 16));
  }
};

// The sums of a warp, from the start of the first product that adds to them until the last one has been waited for.
// Meanwhile its threads have NaN.
struct Sums {
  int columns;
  std::array<float*, kWarp> of_lanes;
  std::vector<float> values;  // [kRows][columns]
  int unfinished = 0;         // products

  // Calls body(value, a lane's register for it).
  template <typename Body>
  void each(const Body& body) {
    for (int lane = 0; lane < static_cast<int>(kWarp); ++lane)
      for (int i = 0; i < columns / 2; ++i) {
        const int row = i / 2 % 2 * 8 + lane / 4, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        body(values[static_cast<size_t>(row * columns + column)], of_lanes[static_cast<size_t>(lane)][i]);
      }
  }

  void take() {
    each([](float& value, float& in_register) {
      value = in_register;
      in_register = std::bit_cast<float>(kUnfinished);
    });
  }
  void give_back() {
    each([](const float& value, float& in_register) {
      if (std::bit_cast<uint32_t>(in_register) != kUnfinished) fail("sums were written before matrices_done");
      in_register = value;
    });
  }
};

// A warp's part of a product: 16 rows.
struct Part {
  Product product;
  int row;
  std::array<LeftWords, kWarp> registers;  // of its lanes
  Sums* sums;
  bool is_done = false;

  void finish() {
    if (std::exchange(is_done, true)) return;
    float left[kDepth * kRows], right[kDepth * kMostColumns];
    const int columns = product.columns;
    if (product.left_in_registers)
      read_registers(left);
    else
      Operand(product.left, product.bfloat16, product.left_depth_first).read(row, kRows, left, kRows);
    Operand(product.right, product.bfloat16, product.right_depth_first).read(0, columns, right, columns);
    if (!product.add) std::fill(sums->values.begin(), sums->values.end(), 0.0f);
    add(left, right);
  }

 private:
  // Word 2 * i + h of a lane has the elements of row 8 * h + lane / 4 and of the depths 8 * i + 2 * (lane % 4) + e.
  void read_registers(float* left) const {
    for (int lane = 0; lane < static_cast<int>(kWarp); ++lane)
      for (int word = 0; word < kLeftWords; ++word)
        for (int e = 0; e < 2; ++e) {
          const uint32_t both = *registers[static_cast<size_t>(lane)][static_cast<size_t>(word)];
          const auto bits = static_cast<uint16_t>(both >> 16 * e);
          const int depth = word / 2 * 8 + lane % 4 * 2 + e, r = word % 2 * 8 + lane / 4;
          left[depth * kRows + r] = product.bfloat16 ? from_bfloat16(bits) : from_float16(bits);
        }
  }

  // All products of half precision are exact in float32; the loop over columns is one of vectors.
  __attribute__((optimize("O3"))) void add(const float* left, const float* right) {
    const int columns = product.columns;
    for (int r = 0; r < kRows; ++r)
      for (int k = 0; k < kDepth; ++k) {
        const float factor = left[k * kRows + r];
        float* const to = sums->values.data() + r * columns;
        const float* const from = right + k * columns;
        for (int c = 0; c < columns; ++c) to[c] += factor * from[c];
      }
  }
};

// What a thread hands to the warpgroup when it starts a product.
struct Started {
  Product product;
  LeftWords left;
};

// What a warp has started and not waited for.
struct Warp {
  std::list<Sums> sums;
  std::vector<Part> started;              // since the last batch
  std::deque<std::vector<Part>> batches;  // which were not waited for
  bool has_begun = false;

  static Warp& of_this_thread();

  void start(const Product& product, int row, const Lane* lanes) {
    Sums* const mine = find_sums(product.columns, lanes);
    mine->unfinished += 1;
    Part& part = started.emplace_back(Part{product, row, {}, mine});
    if (product.left_in_registers)
      for (size_t lane = 0; lane < kWarp; ++lane)
        part.registers[lane] = static_cast<const Started*>(lanes[lane].more)->left;
    if (!decide()) return;
    for (auto& batch : batches) finish(batch);
    finish(started);
  }

  void wait(int allowed) {
    for (; static_cast<int>(batches.size()) > allowed; batches.pop_front()) {
      finish(batches.front());
      for (Part& part : batches.front())
        if (--part.sums->unfinished == 0) {
          part.sums->give_back();
          sums.remove_if([&](const Sums& each) { return &each == part.sums; });
          has_begun = false;
        }
    }
  }

 private:
  static void finish(std::vector<Part>& parts) {
    for (Part& part : parts) part.finish();
  }

  Sums* find_sums(int columns, const Lane* lanes) {
    for (Sums& each : sums)
      if (each.of_lanes[0] == lanes[0].sum) {
        if (each.columns != columns) fail("sums that are not waited for are used with another number of columns");
        return &each;
      }
    if (!has_begun) fail("matrices_begin was not called after the sums were last waited for");
    Sums& made = sums.emplace_back(Sums{columns, {}, std::vector<float>(static_cast<size_t>(kRows * columns))});
    for (size_t lane = 0; lane < kWarp; ++lane) made.of_lanes[lane] = lanes[lane].sum;
    made.take();
    return &made;
  }
};

thread_local std::map<unsigned, Warp> warps;  // by number in the block

Warp& Warp::of_this_thread() { return warps[threadIdx.x / kWarp]; }

void check_products() {
  const Warp& mine = Warp::of_this_thread();
  if (!mine.started.empty() || !mine.batches.empty()) fail("the thread ends before its products are done");
}

// The registers of the block's threads, and where threads wait for some.
struct Registers : Place {
  static constexpr int kAll = 65536;

  std::vector<int> of_threads =
      std::vector<int>(blockDim.x, std::min(255, kAll / static_cast<int>(blockDim.x)) / 8 * 8);
  int free = 0;

  std::string describe() const override { return "more_registers"; }

  static Registers& of_this_block() {
    static thread_local Registers registers;
    return registers;
  }
};

}  // namespace

void start_product(const Product& product, float* sums, const LeftWords& left) {
  at_end(check_products);
  const Started mine = {product, left};
  this_lane().sum = sums, this_lane().more = &mine;
  meet_warpgroup("multiply_matrices", [](Lane* lanes) {
    const Product& first = static_cast<const Started*>(lanes[0].more)->product;
    for (unsigned i = 1; i < kWarpgroup; ++i)
      if (static_cast<const Started*>(lanes[i].more)->product != first)
        fail("the threads of a warpgroup multiply different matrices");
    const unsigned group = threadIdx.x / kWarpgroup;
    for (unsigned warp = 0; warp < kWarpgroup / kWarp; ++warp)
      warps[group * kWarpgroup / kWarp + warp].start(first, static_cast<int>(warp) * kRows, lanes + warp * kWarp);
  });
}

void wait_for_products(int batches) {
  this_lane().a[0] = static_cast<uint32_t>(batches);
  meet_warp("matrices_done", [](Lane* lanes) { Warp::of_this_thread().wait(static_cast<int>(lanes[0].a[0])); });
}

void change_registers(bool more, int count) {
  if (count % 8 != 0 || count < 24 || count > 256) fail("a thread can have 24 to 256 registers, a multiple of 8");
  meet_warpgroup(more ? "more_registers" : "fewer_registers");
  Registers& all = Registers::of_this_block();
  int& mine = all.of_threads[threadIdx.x];
  if (!more && count > mine) fail("fewer_registers: the thread has fewer already");
  while (count - mine > all.free) wait(all);
  all.free -= count - std::exchange(mine, count);
  wake(all);
}

}  // namespace host

void matrices_begin() {
  host::meet_warp("matrices_begin", [](host::Lane*) { host::Warp::of_this_thread().has_begun = true; });
}

void matrices_started() {
  host::meet_warp("matrices_started", [](host::Lane*) {
    host::Warp& warp = host::Warp::of_this_thread();
    warp.batches.push_back(std::move(warp.started));
    warp.started.clear();
  });
}

void store_transposed(void* row, uint32_t m0, uint32_t m1) {
  constexpr unsigned kMatrices = 2, kRowsOfMatrix = 8;
  host::this_lane() = {{m0, m1}, {}, nullptr, row};
  if (threadIdx.x % host::kWarp < kMatrices * kRowsOfMatrix) {
    if (host::shared_address(row) % 16 != 0) host::fail("store_transposed: the address is not aligned");
    host::note_store(row);
  }
  host::meet_warp("store_transposed", [](host::Lane* lanes) {
    for (unsigned matrix = 0; matrix < kMatrices; ++matrix)
      for (unsigned lane = 0; lane < host::kWarp; ++lane)
        for (unsigned i = 0; i < 2; ++i) {
          const host::Lane& place = lanes[kRowsOfMatrix * matrix + 2 * (lane % 4) + i];
          const auto value = static_cast<uint16_t>(lanes[lane].a[matrix] >> 16 * i);
          std::memcpy(static_cast<char*>(const_cast<void*>(place.more)) + lane / 4 * 2, &value, 2);
        }
  });
}

}  // namespace fused_rnn::cuda
