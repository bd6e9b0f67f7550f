#include "cuda/emulation/hopper_functions.h"

#include <bit>
#include <cstring>
#include <deque>
#include <vector>

namespace mutilde::emulation {
namespace {

constexpr uintptr_t kPattern = 1024;

uintptr_t shared_begin() {
  const auto begin =
      reinterpret_cast<uintptr_t>(running_block("shared memory").dynamic_shared_memory());
  return begin / kPattern * kPattern;
}

/// The 16-byte pieces of a row of 128 bytes change places, by the row's number in its pattern.
uintptr_t swizzled(uintptr_t address) { return address ^ (address >> 3 & 0x70); }

// ---- Barriers

/// A phase is over when all have arrived and all bytes have come.
struct Barrier {
  uint16_t arrivals;  // a phase
  int16_t missing;
  int32_t bytes : 31;
  uint32_t parity : 1;
};
static_assert(sizeof(Barrier) == sizeof(uint64_t));

template <class Change>
void change(uint64_t* barrier, const Change& change) {
  auto state = std::bit_cast<Barrier>(*barrier);
  change(state);
  if (state.missing < 0) {
    fail<KernelFault>("{}: more threads arrive at a barrier than the {} that it waits for",
                      running_block("arrive").where(), state.arrivals);
  }
  if (state.missing == 0 && state.bytes == 0) {
    state.missing = static_cast<int16_t>(state.arrivals);
    state.parity ^= 1;
  }
  *barrier = std::bit_cast<uint64_t>(state);
}

bool is_over(const void* barrier, unsigned parity) {
  return std::bit_cast<Barrier>(*static_cast<const uint64_t*>(barrier)).parity != parity;
}

// ---- Products

struct Product {
  float* d;
  uint64_t a, b;
  bool a_transposed, b_transposed;
  void (*compute)(const Product&);
};

/// What a thread has asked for: groups of products, the last one open.
struct Groups {
  std::deque<std::vector<Product>> committed;
  std::vector<Product> open;
};
thread_local std::vector<Groups> groups_of_thread;  // of the block that this host thread runs

Groups& groups() { return groups_of_thread.at(static_cast<size_t>(linear_thread())); }

/// Element (outer, k) of a factor.
template <class E>
float element(uint64_t descriptor, bool transposed, int outer, int k) {
  const auto field = [&](int bit) { return (descriptor >> bit & 0x3fff) << 4; };
  const uint64_t begin = field(0), leading = field(16), stride = field(32);
  const uint64_t offset = transposed
                              ? outer / 64 * leading + k / 8 * stride + k % 8 * 128 + outer % 64 * 2
                              : outer / 8 * stride + outer % 8 * 128 + k * 2;
  return *reinterpret_cast<const E*>(shared_begin() + swizzled(begin + offset));
}

/// This thread's part: of each 8 columns two neighbours, in each of two rows, 8 apart.
template <class E>
void compute(const Product& product) {
  const int lane = lane_index(), warp = linear_thread() / kWarpSize % 4;
  const int row = warp * 16 + lane / 4;
  for (int k = 0; k < 16; ++k) {
    const float a[] = {element<E>(product.a, product.a_transposed, row, k),
                       element<E>(product.a, product.a_transposed, row + 8, k)};
    for (int i = 0; i < 32; ++i) {
      const int column = i / 2 * 8 + lane % 4 * 2 + i % 2;
      const float b = element<E>(product.b, product.b_transposed, column, k);
      for (int half = 0; half < 2; ++half) product.d[i / 2 * 4 + half * 2 + i % 2] += a[half] * b;
    }
  }
}

}  // namespace

template <class E>
void add_product(float* d, uint64_t a, bool a_transposed, uint64_t b, bool b_transposed) {
  for (const uint64_t descriptor : {a, b}) {
    if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0) {
      fail<KernelFault>("{}: the descriptor {:#x} is not of a 128-byte swizzle from its beginning",
                        running_block("wgmma").where(), descriptor);
    }
  }
  groups().open.push_back({d, a, b, a_transposed, b_transposed, compute<E>});
}

template void add_product<__nv_bfloat16>(float*, uint64_t, bool, uint64_t, bool);
template void add_product<__half>(float*, uint64_t, bool, uint64_t, bool);

CUtensorMap make_tensor_map(const void* array, int rank, const uint64_t* sizes, const uint32_t* box,
                            const uint32_t* steps) {
  CUtensorMap map{
      static_cast<const unsigned char*>(array), rank, {1, 1, 1, 1}, {}, {1, 1, 1, 1}, {1, 1, 1, 1}};
  bool good = reinterpret_cast<uintptr_t>(array) % 16 == 0 && box[0] == 64;
  int64_t stride = 1;
  for (int axis = 0; axis < rank; ++axis) {
    good = good && sizes[axis] > 0 && box[axis] >= 1 && box[axis] <= 256 && steps[axis] >= 1 &&
           steps[axis] <= 8;
    good = good && (axis == 0 || stride % 8 == 0);  // 16 bytes
    if (!good) fail<Error>("cuTensorMapEncodeTiled: the copy engine cannot copy such boxes");
    map.sizes[axis] = static_cast<int64_t>(sizes[axis]);
    map.strides[axis] = stride;
    stride *= map.sizes[axis];
    map.steps[axis] = static_cast<int>(steps[axis]);
    map.box[axis] = static_cast<int>((box[axis] + steps[axis] - 1) / steps[axis]);
  }
  return map;
}

void copy_box(const CUtensorMap& map, const int* begin, void* tile, uint64_t* barrier) {
  auto to = reinterpret_cast<uintptr_t>(tile);
  if (to % kPattern != 0) {
    fail<KernelFault>("{}: a tile for the copy engine is not aligned to {} bytes",
                      running_block("copy_tile").where(), kPattern);
  }
  const int rows = map.box[1] * map.box[2] * map.box[3];
  constexpr int kBytes = sizeof(uint16_t);
  for (int i = 0; i < rows * 64; ++i, to += kBytes) {
    const int at[] = {i % 64, i / 64 % map.box[1], i / 64 / map.box[1] % map.box[2],
                      i / 64 / map.box[1] / map.box[2]};
    bool inside = true;
    int64_t offset = 0;
    for (int axis = 0; axis < map.rank; ++axis) {
      const int64_t index = int64_t{begin[axis]} + at[axis] * map.steps[axis];
      inside = inside && index >= 0 && index < map.sizes[axis];
      offset += index * map.strides[axis];
    }
    void* place = reinterpret_cast<void*>(swizzled(to));
    std::memset(place, 0, kBytes);
    if (inside) std::memcpy(place, map.array + offset * kBytes, kBytes);
  }
  change(barrier, [&](Barrier& state) { state.bytes -= rows * 64 * kBytes; });
}

}  // namespace mutilde::emulation

namespace mutilde::cuda::hopper {

using namespace emulation;

uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(pointer) - shared_begin());
}

void init_barrier(uint64_t* barrier, int arrivals) {
  *barrier = std::bit_cast<uint64_t>(
      Barrier{static_cast<uint16_t>(arrivals), static_cast<int16_t>(arrivals), 0, 0});
  // A block begins: what one that failed had asked for is forgotten.
  groups_of_thread.assign(size_t{blockDim.x} * blockDim.y * blockDim.z, {});
}

void arrive(uint64_t* barrier) {
  change(barrier, [](Barrier& state) { --state.missing; });
}

void arrive_and_expect(uint64_t* barrier, uint32_t bytes) {
  change(barrier, [&](Barrier& state) {
    state.bytes += static_cast<int>(bytes);
    --state.missing;
  });
}

void wait(uint64_t* barrier, uint32_t parity, CallSite site) {
  running_block("wait").wait_until(is_over, barrier, parity, "wait() for a phase of a barrier",
                                   site);
}

void commit_products() {
  groups().committed.push_back(std::move(groups().open));
  groups().open.clear();
}

void wait_for_products(int pending) {
  std::deque<std::vector<Product>>& committed = groups().committed;
  for (; std::ssize(committed) > pending; committed.pop_front()) {
    for (const Product& product : committed.front()) product.compute(product);
  }
}

}  // namespace mutilde::cuda::hopper
