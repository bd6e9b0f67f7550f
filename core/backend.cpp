#include "core/backend.h"

#include <array>
#include <utility>

#include "core/cpu_isa.h"

namespace mutilde {

namespace {

// The CPU is part of the core library; other backends register themselves.
Backend& cpu_backend(int) { return cpu_isa().kernels->backend(); }

std::array<MakeBackend, 2>& registry() {
  static std::array<MakeBackend, 2> makers = {cpu_backend, nullptr};
  return makers;
}

}  // namespace

Backend& backend(Device device) {
  const MakeBackend make = registry()[static_cast<size_t>(device.type)];
  if (make == nullptr)
    fail<Error>("device {}: this build has no backend for it", device.to_string());
  return make(device.index);
}

MakeBackend register_backend(DeviceType type, MakeBackend make) {
  return std::exchange(registry()[static_cast<size_t>(type)], make);
}

}  // namespace mutilde
