// What an element is, and where it lives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "core/error.h"

namespace mutilde {

/// A bfloat16 is the upper half of a float32: stored here, computed with in float32.
struct BFloat16 {
  uint16_t bits = 0;
};

enum class DType { kFloat32, kFloat64, kBFloat16, kInt32, kInt64, kUInt8 };

size_t size_of(DType dtype);       // bytes an element
const char* name_of(DType dtype);  // "float32"
inline bool is_floating(DType dtype) { return dtype <= DType::kBFloat16; }

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
