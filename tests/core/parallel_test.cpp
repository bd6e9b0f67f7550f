// The loops over threads: an exception must come out of them, from whichever thread.
#include "core/cpu/parallel.h"

#include <atomic>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/kernel_testing.h"

namespace mutilde {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;
using testing_kernels::on_threads;

/// The indices that the loop reached.
template <class Loop>
int visits(int threads, const Loop& loop) {
  std::atomic<int> count = 0;
  on_threads(threads, [&] {
    loop(count);
    return 0;
  });
  return count;
}

TEST(Parallel, ForThrowsWhatItsBodyThrowsAndWorksAgainAfterwards) {
  for (int threads : {1, 3}) {
    const auto body = [](int64_t begin, int64_t end) {
      if (begin <= 70 && 70 < end) fail<Error>("no memory at {}", 70);
    };
    EXPECT_THAT(([&] {
                  on_threads(threads, [&] {
                    parallel_for(99, 1, body);
                    return 0;
                  });
                }),
                ThrowsMessage<Error>(HasSubstr("no memory at 70")));
    EXPECT_EQ(visits(threads,
                     [](std::atomic<int>& count) {
                       parallel_for(99, 1, [&](int64_t begin, int64_t end) {
                         count += static_cast<int>(end - begin);
                       });
                     }),
              99);
  }
}

TEST(Parallel, TasksThrowTheFirstExceptionWhenAllOfThemThrow) {
  for (int threads : {1, 3}) {
    EXPECT_THAT(([&] {
                  on_threads(threads, [&] {
                    parallel_tasks(7, [](int64_t i) { fail<ShapeError>("task {}", i); });
                    return 0;
                  });
                }),
                ThrowsMessage<ShapeError>(HasSubstr("task ")));
    EXPECT_EQ(visits(threads,
                     [](std::atomic<int>& count) { parallel_tasks(7, [&](int64_t) { ++count; }); }),
              7);
  }
}

TEST(Parallel, AnExceptionLeavesNestedLoopsToo) {
  EXPECT_THROW(on_threads(3,
                          [] {
                            parallel_tasks(4, [](int64_t i) {
                              parallel_for(8, 1, [i](int64_t begin, int64_t) {
                                if (i == 2) fail<Error>("at {}", begin);
                              });
                            });
                            return 0;
                          }),
               Error);
}

}  // namespace
}  // namespace mutilde
