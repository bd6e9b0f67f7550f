// Atomic operations on shared and global memory. They are atomic between host threads too, since
// blocks run on several; relaxed, as CUDA's are. Each returns the value before.
//
// A sum of floats by atomicAdd depends on the order in which blocks get there, here as on a GPU.
#pragma once

#include <atomic>
#include <concepts>
#include <type_traits>

// NOLINTBEGIN(readability-identifier-naming): CUDA's names.

namespace mutilde::emulation {

template <class T>
concept AtomicInteger =
    std::same_as<T, int> || std::same_as<T, unsigned> || std::same_as<T, unsigned long long>;
template <class T>
concept Atomic = AtomicInteger<T> || std::same_as<T, float> || std::same_as<T, double>;

}  // namespace mutilde::emulation

// type_identity: the second argument converts to the type of what the first points to.

template <mutilde::emulation::Atomic T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).fetch_add(value, std::memory_order_relaxed);
}

/// Stores `value` if `expected` is found.
template <mutilde::emulation::AtomicInteger T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  std::atomic_ref<T>(*address).compare_exchange_strong(expected, value, std::memory_order_relaxed);
  return expected;
}

template <mutilde::emulation::Atomic T>
requires(!std::same_as<T, double>) T atomicExch(T* address, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*address).exchange(value, std::memory_order_relaxed);
}

template <mutilde::emulation::AtomicInteger T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  std::atomic_ref<T> target(*address);
  T found = target.load(std::memory_order_relaxed);
  while (found < value && !target.compare_exchange_weak(found, value, std::memory_order_relaxed)) {
  }
  return found;
}

template <mutilde::emulation::AtomicInteger T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  std::atomic_ref<T> target(*address);
  T found = target.load(std::memory_order_relaxed);
  while (value < found && !target.compare_exchange_weak(found, value, std::memory_order_relaxed)) {
  }
  return found;
}

// NOLINTEND(readability-identifier-naming)
