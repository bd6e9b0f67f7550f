// What an element is, and where it lives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/error.h"

namespace mutilde {

// The short types are stored, and computed with in float32.

/// The upper half of a float32: a sign, 8 bits of exponent, 7 of fraction.
struct BFloat16 {
  uint16_t bits = 0;
};

/// A sign, 5 bits of exponent, 10 of fraction: three more than a bfloat16, of numbers up to 65504. Below 2^-14
/// they are multiples of 2^-24.
struct Float16 {
  uint16_t bits = 0;
};

enum class DType { kFloat32, kFloat64, kBFloat16, kFloat16, kInt32, kInt64, kUInt8 };

size_t size_of(DType dtype);       // bytes an element
const char* name_of(DType dtype);  // "float32"
inline bool is_floating(DType dtype) { return dtype <= DType::kFloat16; }
inline bool is_short(DType dtype) { return dtype == DType::kBFloat16 || dtype == DType::kFloat16; }

template <class T>
constexpr DType dtype_of() = delete;
template <>
constexpr DType dtype_of<float>() {
  return DType::kFloat32;
}
template <>
constexpr DType dtype_of<double>() {
  return DType::kFloat64;
}
template <>
constexpr DType dtype_of<BFloat16>() {
  return DType::kBFloat16;
}
template <>
constexpr DType dtype_of<Float16>() {
  return DType::kFloat16;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::kInt32;
}
template <>
constexpr DType dtype_of<int64_t>() {
  return DType::kInt64;
}
template <>
constexpr DType dtype_of<uint8_t>() {
  return DType::kUInt8;
}

enum class DeviceType { kCpu, kCuda };

struct Device {
  DeviceType type = DeviceType::kCpu;
  int index = 0;

  static Device cpu() { return {}; }
  static Device cuda(int index = 0) { return {DeviceType::kCuda, index}; }
  bool operator==(const Device&) const = default;
  std::string to_string() const;  // "cpu", "cuda:0"
};

}  // namespace mutilde
