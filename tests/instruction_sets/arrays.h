// Random numbers and arrays for problems of the CPU kernels. Each array is allocated separately, so that a sanitizer
// detects accesses beyond its end.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t between(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(engine_() % static_cast<uint32_t>(most - least + 1));
  }
  // True one time in `times`.
  bool once_in(int64_t times) { return between(1, times) == 1; }

 private:
  std::mt19937 engine_;
};

// The arrays of one call. With `bfloat16` all numbers are exact in bfloat16. Outputs are filled, too, so that elements
// that a kernel does not write are the same for every instruction set.
template <typename T>
class Arrays {
 public:
  explicit Arrays(Random& random, bool bfloat16 = false) : random_(random), unit_(bfloat16 ? 256 : 1000) {}

  T* input(int64_t count) {
    const int64_t most = unit_ / 2;
    arrays_.emplace_back(new T[static_cast<size_t>(count)]);
    for (int64_t i = 0; i < count; ++i)
      arrays_.back()[i] = static_cast<T>(random_.between(-most, most)) / static_cast<T>(unit_);
    return arrays_.back().get();
  }
  T* output(const char* name, int64_t count) {
    outputs_.push_back({name, input(count), count});
    return outputs_.back().values;
  }
  // bfloat16 or float16 numbers of moderate size.
  const void* halves(bool bfloat16, int64_t count) {
    halves_.emplace_back(new uint16_t[static_cast<size_t>(count)]);
    for (int64_t i = 0; i < count; ++i) {
      const auto sign = static_cast<uint16_t>(random_.between(0, 1) << 15);
      const int64_t magnitude = bfloat16 ? random_.between(0x3c00, 0x3eff) : random_.between(0x2800, 0x37ff);
      halves_.back()[i] = static_cast<uint16_t>(sign | magnitude);
    }
    return halves_.back().get();
  }

  // Returns the largest difference of an output, relative to its largest value, and prints those above the tolerance.
  double distance(const Arrays& other, const std::string& problem, double tolerance) const {
    double worst = 0;
    for (size_t i = 0; i < outputs_.size(); ++i) {
      double largest = 1e-30, difference = 0;
      for (int64_t j = 0; j < outputs_[i].count; ++j) {
        largest = std::fmax(largest, std::fabs(double(outputs_[i].values[j])));
        const double d = std::fabs(double(outputs_[i].values[j]) - double(other.outputs_[i].values[j]));
        difference = d <= difference ? difference : d;  // a NaN is kept
      }
      const double relative = difference / largest;
      if (!(relative <= tolerance))
        std::printf("%s: %s differs by %.2g\n", problem.c_str(), outputs_[i].name, relative);
      worst = relative <= worst ? worst : relative;
    }
    return worst;
  }

  // The relative error of sums of a few thousand products that are added in different orders.
  static constexpr double kTolerance = sizeof(T) == 4 ? 1e-5 : 1e-14;
  // The same if the output and, from the second step on, the hidden values are rounded to bfloat16, and in training the
  // saved gates, their gradients and the results.
  static constexpr double kRounded = 0.01;

 private:
  struct Output {
    const char* name;
    T* values;
    int64_t count;
  };
  Random& random_;
  const int64_t unit_;
  std::vector<std::unique_ptr<T[]>> arrays_;
  std::vector<std::unique_ptr<uint16_t[]>> halves_;
  std::vector<Output> outputs_;
};
