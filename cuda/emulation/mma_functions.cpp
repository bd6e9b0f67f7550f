#include "cuda/emulation/mma_functions.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <vector>

#include "cuda/emulation/options.h"

namespace mutilde::emulation {
namespace {

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool exists;
};

/// What a thread has asked for: groups of copies, the last one open.
struct Groups {
  int64_t block = 0;
  std::deque<std::vector<Copy>> committed;
  std::vector<Copy> open;
};
thread_local std::vector<Groups> groups_of_thread;  // of the block that this host thread runs

Groups& groups() {
  const int64_t block = running_block("a copy").number();
  const auto thread = static_cast<size_t>(linear_thread());
  if (groups_of_thread.size() <= thread) groups_of_thread.resize(thread + 1);
  Groups& groups = groups_of_thread[thread];
  if (groups.block != block) groups = {block, {}, {}};  // what another block left is gone
  return groups;
}

void make(const Copy& copy) {
  if (copy.exists) {
    std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
  } else {
    std::memset(copy.to, 0, static_cast<size_t>(copy.bytes));
  }
}

void check_alignment(const char* what, const void* address, int bytes, CallSite site) {
  if (reinterpret_cast<uintptr_t>(address) % static_cast<uintptr_t>(bytes) == 0) return;
  fail<KernelFault>("{}: {} at {}: an address is not aligned to {} bytes",
                    running_block(what).where(), what, site.to_string(), bytes);
}

struct Load {
  const void* row;
  bool transposed;
  uint32_t* matrices;
};

void complete_load(unsigned, void* const* payload) {
  const auto lane_of = [&](int lane) { return static_cast<const Load*>(payload[lane]); };
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t pair[2];
      for (int i = 0; i < 2; ++i) {
        int row = lane / 4, column = lane % 4 * 2 + i;
        if (lane_of(lane)->transposed) std::swap(row, column);
        const auto* numbers = static_cast<const uint16_t*>(lane_of(matrix * 8 + row)->row);
        std::memcpy(&pair[i], numbers + column, sizeof(uint16_t));
      }
      std::memcpy(&lane_of(lane)->matrices[matrix], pair, sizeof(pair));
    }
  }
}

struct Product {
  float* sums;
  const uint32_t *a, *b;
};

/// What is in column `column` of a row of a matrix of pairs.
template <class E>
float element(uint32_t pair, int column) {
  return std::bit_cast<E>(static_cast<uint16_t>(column % 2 == 0 ? pair : pair >> 16));
}

template <class E>
void complete_product(unsigned, void* const* payload) {
  const auto lane_of = [&](int row, int column) {
    return static_cast<const Product*>(payload[row % 8 * 4 + column % 8 / 2]);
  };
  float a[16][16], b[8][16];
  for (int k = 0; k < 16; ++k) {
    for (int i = 0; i < 16; ++i) a[i][k] = element<E>(lane_of(i, k)->a[i / 8 + k / 8 * 2], k);
    for (int j = 0; j < 8; ++j) b[j][k] = element<E>(lane_of(j, k)->b[k / 8], k);
  }
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float& sum = lane_of(i, j)->sums[i / 8 * 2 + j % 2];
      for (int k = 0; k < 16; ++k) sum += a[i][k] * b[j][k];
    }
  }
}

constexpr WarpCall kLoad{"load_matrices", Lanes::kNamed, complete_load};
template <class E>
constexpr WarpCall kMultiply{"multiply", Lanes::kNamed, complete_product<E>};
constexpr unsigned kAllLanes = 0xffffffff;

}  // namespace

void copy_async(void* to, const void* from, int bytes, bool exists, CallSite site) {
  check_alignment("copy_async", to, bytes, site);
  check_alignment("copy_async", from, bytes, site);
  const Copy copy{to, from, bytes, exists};
  if (options().order == Order::kReverse) return make(copy);
  groups().open.push_back(copy);
}

void make_copies(int pending) {
  std::deque<std::vector<Copy>>& committed = groups().committed;
  for (; std::ssize(committed) > pending; committed.pop_front()) {
    for (const Copy& copy : committed.front()) make(copy);
  }
}

void load_matrices(uint32_t (&matrices)[4], const void* row, bool transposed, CallSite site) {
  check_alignment(kLoad.name, row, 16, site);
  Load load{row, transposed, matrices};
  running_block(kLoad.name).wait_in_warp(kLoad, kAllLanes, &load, site);
}

}  // namespace mutilde::emulation

namespace mutilde::cuda {

template <class E>
void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, CallSite site) {
  const uint32_t b[] = {b0, b1};
  emulation::Product product{sums, a, b};
  emulation::running_block(emulation::kMultiply<E>.name)
      .wait_in_warp(emulation::kMultiply<E>, emulation::kAllLanes, &product, site);
}

void commit_copies() {
  emulation::Groups& groups = emulation::groups();
  groups.committed.push_back(std::move(groups.open));
  groups.open.clear();
}

template <class E>
uint32_t pack(float low, float high) {
  const uint32_t first = std::bit_cast<uint16_t>(E(low)), second = std::bit_cast<uint16_t>(E(high));
  return first | second << 16;
}

template void multiply<__nv_bfloat16>(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t,
                                      CallSite);
template void multiply<__half>(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t, CallSite);
template uint32_t pack<__nv_bfloat16>(float, float);
template uint32_t pack<__half>(float, float);

float fast_exp2(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126F ? 0 : y;
}

}  // namespace mutilde::cuda
