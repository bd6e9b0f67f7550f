#include "core/random.h"

#include <numeric>
#include <utility>

namespace mutilde {

namespace {

/// The high and low half of a 32 x 32 bit product.
std::pair<uint32_t, uint32_t> multiply(uint32_t a, uint32_t b) {
  const uint64_t product = uint64_t{a} * b;
  return {static_cast<uint32_t>(product >> 32), static_cast<uint32_t>(product)};
}

/// An integer in [0, high) from 64 random bits: floor(bits * high / 2^64). Some integers are more
/// likely than others by at most high / 2^64, which no test can see.
int64_t scaled(uint64_t bits, int64_t high) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<int64_t>((Wide{bits} * static_cast<uint64_t>(high)) >> 64);
}

/// Number i of the 64-bit numbers that start at a position (at a block, so that none is cut in
/// two); each is two words, the low one first.
uint64_t word64(RandomPosition position, int64_t i) {
  const uint64_t word = position.offset + 2 * static_cast<uint64_t>(i);
  const auto block = random_block(position.seed, position.stream, word / 4);
  const size_t low = word % 4;
  return block[low] | uint64_t{block[low + 1]} << 32;
}

Tensor empty_for_draw(const char* op, const Shape& shape, DType dtype, Device device) {
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64) {
    fail<DTypeError>("Generator::{}: {} asked, float32 or float64 is expected", op, name_of(dtype));
  }
  return Tensor::empty(shape, dtype, device);
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const auto [high0, low0] = multiply(0xD2511F53, counter[0]);
    const auto [high1, low1] = multiply(0xCD9E8D57, counter[2]);
    counter = {high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0};
    key[0] += 0x9E3779B9;  // the golden ratio
    key[1] += 0xBB67AE85;  // sqrt(3) - 1
  }
  return counter;
}

Generator::Generator(RandomPosition position) : position_(position) {
  if (position.offset % 4 != 0) {
    fail<Error>("Generator: the offset {} of the random position is no multiple of 4",
                position.offset);
  }
}

RandomPosition Generator::take(int64_t n) {
  const RandomPosition start = position_;
  position_.offset += (static_cast<uint64_t>(n) + 3) / 4 * 4;
  return start;
}

Tensor Generator::normal(const Shape& shape, DType dtype, Device device) {
  const Tensor tensor = empty_for_draw("normal", shape, dtype, device);
  backend(device).fill_normal(take(tensor.numel()), tensor);
  return tensor;
}

Tensor Generator::uniform(const Shape& shape, DType dtype, Device device) {
  const Tensor tensor = empty_for_draw("uniform", shape, dtype, device);
  backend(device).fill_uniform(take(tensor.numel()), tensor);
  return tensor;
}

Tensor Generator::integers(const Shape& shape, int64_t high) {
  if (high < 1) fail<Error>("Generator::integers: [0, {}) is empty", high);
  const Tensor tensor = Tensor::empty(shape, DType::kInt64);
  const std::span<int64_t> values = tensor.values<int64_t>();
  const RandomPosition position = take(2 * tensor.numel());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = scaled(word64(position, static_cast<int64_t>(i)), high);
  }
  return tensor;
}

// Fisher-Yates: entry i, from the last one down, changes places with one at or before it.
Tensor Generator::permutation(int64_t n) {
  const Tensor tensor = Tensor::empty({n}, DType::kInt64);
  const std::span<int64_t> order = tensor.values<int64_t>();
  std::iota(order.begin(), order.end(), int64_t{0});
  const RandomPosition position = take(2 * n);
  for (int64_t i = n - 1; i > 0; --i) {
    const int64_t j = scaled(word64(position, i), i + 1);
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(j)]);
  }
  return tensor;
}

}  // namespace mutilde
