// The types that activations may be stored in, and the ops on them, for tests that hold for both types.
#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/precision.h"
#include "core/tensor.h"

namespace mutilde {

struct ShortType {
  DType dtype;
  Precision precision;
  /// What rounding to it costs at most: a number from 1 to 2, half of its last bit; and any number that is below
  /// the least normal one.
  double half_unit, least;
  /// The largest number.
  double largest;
};

constexpr ShortType kShortTypes[] = {
    {DType::kBFloat16, Precision::kBfloat16, 0x1p-8, 0x1p-134, 0x1.fep127},
    {DType::kFloat16, Precision::kFloat16, 0x1p-11, 0x1p-25, 65504}};

inline void PrintTo(const ShortType& type, std::ostream* stream) { *stream << name_of(type.dtype); }

constexpr auto kNameOfShortType = [](const testing::TestParamInfo<ShortType>& info) {
  return std::string(name_of(info.param.dtype));
};

/// An op, and what it is tried on.
struct ShortCase {
  struct Input {
    Shape shape;
    bool is_activation = true;  // else a parameter
  };

  std::string name;
  std::vector<Input> inputs;
  /// Sums are of at most `terms` numbers, none of which is over `size`.
  double terms;
  std::function<Tensor(const std::vector<Tensor>&)> op;
  double size = 1;
};

/// The table of ops on short types.
std::vector<ShortCase> short_cases();

/// The op's result, and its gradients for a random cotangent, all in the type's digits: in float32 on the CPU, or on
/// the GPU with its activations in the type.
std::vector<Tensor> results_of(const ShortCase& row, DType type, bool short_on_gpu);

}  // namespace mutilde
