#include "data/threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace mutilde {

void run_on_threads(int64_t count, const std::function<void(int64_t)>& task, int threads) {
  if (threads <= 0) threads = static_cast<int>(std::max(std::thread::hardware_concurrency(), 1U));
  std::atomic<int64_t> next = 0;
  std::atomic<bool> failed = false;
  std::mutex mutex;
  std::exception_ptr error;
  int64_t error_index = count;

  const auto work = [&] {
    while (!failed) {
      const int64_t index = next++;
      if (index >= count) return;
      try {
        task(index);
      } catch (...) {
        const std::lock_guard lock(mutex);
        failed = true;
        if (index < error_index) {
          error_index = index;
          error = std::current_exception();
        }
      }
    }
  };
  {
    std::vector<std::jthread> helpers;
    for (int64_t i = 1; i < std::min<int64_t>(threads, count); ++i) helpers.emplace_back(work);
    work();
  }  // joins
  if (error) std::rethrow_exception(error);
}

}  // namespace mutilde
