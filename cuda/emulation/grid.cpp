#include "cuda/emulation/grid.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <limits>
#include <mutex>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cuda/emulation/block.h"
#include "cuda/emulation/options.h"
#include "cuda/emulation/sanitizers.h"

namespace mutilde::emulation {

Options& options() {
  static Options options;
  return options;
}

namespace {

// The same for every compute capability from 3.0 on.
constexpr dim3 kMaxGrid(2147483647, 65535, 65535);
constexpr dim3 kMaxBlock(1024, 1024, 64);
constexpr int64_t kMaxThreadsPerBlock = 1024;

thread_local std::string_view launched_last;

int64_t volume(dim3 size) { return int64_t{size.x} * size.y * size.z; }

bool fits(dim3 size, dim3 max) {
  return volume(size) > 0 && size.x <= max.x && size.y <= max.y && size.z <= max.z;
}

void check(const Launch& launch) {
  const auto require = [&](bool good, const char* what, const std::string& given,
                           const std::string& limit) {
    if (good) return;
    fail<KernelFault>("{}, launched at {}: {} is {}, the limit is {}", launch.kernel,
                      launch.site.to_string(), what, given, limit);
  };
  const auto text = [](dim3 size) { return to_string({size.x, size.y, size.z}); };
  require(fits(launch.grid, kMaxGrid), "the grid", text(launch.grid),
          "from (1,1,1) to " + text(kMaxGrid));
  require(fits(launch.block, kMaxBlock), "the block", text(launch.block),
          "from (1,1,1) to " + text(kMaxBlock));
  require(volume(launch.block) <= kMaxThreadsPerBlock, "the block",
          fmt::format("{} = {} threads", text(launch.block), volume(launch.block)),
          fmt::format("{}", kMaxThreadsPerBlock));
  const size_t max_shared = options().hopper ? 227 * 1024 : options().shared_bytes_per_block;
  require(launch.shared_bytes <= max_shared, "dynamic shared memory",
          fmt::format("{} bytes", launch.shared_bytes), fmt::format("{}", max_shared));
  if (Block::running() != nullptr) {
    fail<KernelFault>("{}: launched by a kernel, which the emulation does not do", launch.kernel);
  }
}

/// What all host threads of one launch share.
struct Progress {
  std::atomic<int64_t> next_block = 0;
  std::atomic<int64_t> faulty_block = std::numeric_limits<int64_t>::max();
  std::mutex mutex;  // of the two together: faulty_block and its fault
  std::exception_ptr fault;
};

void run_blocks(const Launch& launch, Progress& progress) {
  // Lives as long as the host thread: the fibers' stacks are used again by the next launch.
  thread_local Block block;
  const int64_t count = volume(launch.grid);
  for (;;) {
    // Blocks begin in order. When one is faulty, all before it have begun, and are finished.
    const int64_t i = progress.next_block++;
    if (i >= count || i > progress.faulty_block) return;
    try {
      const int64_t row = i / launch.grid.x;
      block.run(launch, {static_cast<unsigned>(i % launch.grid.x),
                         static_cast<unsigned>(row % launch.grid.y),
                         static_cast<unsigned>(row / launch.grid.y)});
    } catch (...) {
      const std::lock_guard lock(progress.mutex);
      if (i < progress.faulty_block) {
        progress.faulty_block = i;
        progress.fault = std::current_exception();
      }
    }
  }
}

}  // namespace

std::string_view last_kernel() { return launched_last; }

void run_grid(const Launch& launch) {
  check(launch);
  launched_last = launch.kernel;
  if (int64_t& left = options().launches_until_lost; left > 0) --left;
  report_on_death(
      [] { return Block::running() == nullptr ? std::string() : Block::running()->where(); });
  Progress progress;
#ifdef _OPENMP
  const int wanted = options().host_threads > 0 ? options().host_threads : omp_get_max_threads();
  const int64_t threads = std::min<int64_t>(wanted, volume(launch.grid));
  if (threads > 1 && !omp_in_parallel()) {
#pragma omp parallel num_threads(static_cast <int>(threads))
    run_blocks(launch, progress);
  } else {
    run_blocks(launch, progress);
  }
#else
  run_blocks(launch, progress);
#endif
  if (progress.fault) std::rethrow_exception(progress.fault);
}

}  // namespace mutilde::emulation
