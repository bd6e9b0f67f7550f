// The types that activations may be stored in, for tests that hold for both.
#pragma once

#include <ostream>
#include <string>

#include <gtest/gtest.h>

#include "core/precision.h"

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

}  // namespace mutilde
