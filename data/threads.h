// Work on all cores from plain threads, for jobs that read files: unlike in the kernels' loops, a
// task may throw.
#pragma once

#include <cstdint>
#include <functional>

namespace mutilde {

/// Calls task(0) ... task(count - 1), in any order, on at most `threads` threads (0: one a core).
/// If tasks throw, no new ones begin, and the exception of the lowest index among them is thrown.
void run_on_threads(int64_t count, const std::function<void(int64_t)>& task, int threads = 0);

}  // namespace mutilde
