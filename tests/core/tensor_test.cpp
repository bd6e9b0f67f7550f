#include "core/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/caching_allocator.h"
#include "core/ops/ops.h"

namespace mutilde {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <class ErrorType, class F>
std::string message_of(const F& f) {
  try {
    f();
  } catch (const ErrorType& error) {
    return error.what();
  }
  return "(nothing was thrown)";
}

TEST(Shape, CountsElementsAndIndexesFromBothEnds) {
  const Shape shape{2, 3, 5};
  EXPECT_EQ(shape.numel(), 30);
  EXPECT_EQ(shape[0], 2);
  EXPECT_EQ(shape[-1], 5);
  EXPECT_EQ(Shape{}.numel(), 1);
  EXPECT_EQ((Shape{4, 0, 2}).numel(), 0);
  EXPECT_EQ(shape.to_string(), "[2,3,5]");
}

TEST(Shape, RefusesNegativeSizesTooManyAxesAndMissingAxes) {
  EXPECT_THAT(message_of<ShapeError>([] { Shape{2, -3}; }), HasSubstr("negative size -3"));
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1, 1}), ShapeError);
  EXPECT_THAT(message_of<ShapeError>([] { (Shape{2, 3})[2]; }), HasSubstr("axis 2"));
}

TEST(Shape, BroadcastsAtTheLastAxis) {
  EXPECT_EQ(broadcast_shapes("add", {4, 1, 3}, {5, 1}), (Shape{4, 5, 3}));
  EXPECT_EQ(broadcast_shapes("add", {}, {2, 2}), (Shape{2, 2}));
  EXPECT_EQ(broadcast_shapes("add", {1, 3}, {0, 1}), (Shape{0, 3}));
  EXPECT_THAT(message_of<ShapeError>([] {
                broadcast_shapes("add", {2, 3}, {2, 4});
              }),
              HasSubstr("add: shapes [2,3] and [2,4]"));
}

TEST(Tensor, SharesStorageThroughHandlesReshapeAndSlice) {
  const Tensor x = Tensor::from<float>({3, 2}, {0, 1, 2, 3, 4, 5});
  const Tensor rows = x.slice(1, 3);
  const Tensor flat = x.reshape({6});
  flat.data<float>()[2] = 20;
  EXPECT_THAT(rows.to_vector<float>(), ElementsAre(20, 3, 4, 5));
  EXPECT_EQ(rows.shape(), (Shape{2, 2}));
}

TEST(Tensor, CloneAndDetachDiffer) {
  const Tensor x = Tensor::from<double>({2}, {1, 2});
  const Tensor copy = x.clone();
  const Tensor alias = x.detach();
  x.data<double>()[0] = 7;
  EXPECT_THAT(copy.to_vector<double>(), ElementsAre(1, 2));
  EXPECT_THAT(alias.to_vector<double>(), ElementsAre(7, 2));
}

TEST(Tensor, NamesWhatWasGivenAndExpected) {
  EXPECT_THAT(message_of<ShapeError>([] {
                Tensor::from<float>({2, 2}, {1, 2, 3});
              }),
              HasSubstr("3 values given, shape [2,2] has 4"));
  EXPECT_THAT(message_of<DTypeError>([] { Tensor::zeros({1}).data<double>(); }),
              HasSubstr("float64 asked, the tensor holds float32"));
  EXPECT_THAT(message_of<ShapeError>([] { Tensor::zeros({2}).item(); }), HasSubstr("[2]"));
  EXPECT_THAT(message_of<Error>([] { Tensor::zeros({1}, DType::kFloat32, Device::cuda(3)); }),
              HasSubstr("cuda:3"));
  EXPECT_THROW(Tensor::arange(3).set_requires_grad(true), DTypeError);
}

TEST(Tensor, ConvertsBetweenDtypes) {
  const Tensor x = Tensor::from<float>({3}, {-1.5F, 0.0F, 3.75F});
  EXPECT_THAT(x.to(DType::kFloat64).to_vector<double>(), ElementsAre(-1.5, 0.0, 3.75));
  EXPECT_THAT(x.to(DType::kInt32).to_vector<int32_t>(), ElementsAre(-1, 0, 3));
  EXPECT_THAT(x.to(DType::kBFloat16).to_vector<float>(), ElementsAre(-1.5F, 0.0F, 3.75F));
}

TEST(CachingAllocator, HandsAFreedBlockOutAgainAndCountsBytes) {
  int system_calls = 0;
  CachingAllocator allocator(
      [&](size_t bytes) {
        ++system_calls;
        return std::malloc(bytes);
      },
      [](void* data, size_t) { std::free(data); });
  void* first = allocator.allocate(100);
  EXPECT_EQ(allocator.stats().live_bytes, 128);
  allocator.release(first, 100);
  EXPECT_EQ(allocator.stats().live_bytes, 0);
  EXPECT_EQ(allocator.stats().cached_bytes, 128);
  EXPECT_EQ(allocator.allocate(120), first);  // the same 64-byte class
  EXPECT_EQ(system_calls, 1);
  allocator.release(first, 120);
  allocator.release_cached();
  EXPECT_EQ(allocator.stats().cached_bytes, 0);
  EXPECT_EQ(allocator.stats().peak_bytes, 128);
}

TEST(CachingAllocator, FreesItsCacheBeforeItGivesUp) {
  size_t left = 1024;
  CachingAllocator allocator(
      [&](size_t bytes) -> void* {
        if (bytes > left) return nullptr;
        left -= bytes;
        return std::malloc(bytes);
      },
      [&](void* data, size_t bytes) {
        left += bytes;
        std::free(data);
      });
  allocator.release(allocator.allocate(640), 640);
  void* block = allocator.allocate(1024);  // fits only once the cached 640 bytes are gone
  ASSERT_NE(block, nullptr);
  EXPECT_THAT(message_of<Error>([&] { allocator.allocate(64); }),
              HasSubstr("64 bytes asked, 1024 bytes live"));
  allocator.release(block, 1024);
}

TEST(Memory, BuffersOfAFinishedGraphServeTheNextOne) {
  Backend& cpu = backend(Device::cpu());
  const auto step = [] {
    Tensor x = Tensor::full({64, 64}, 0.5);
    x.set_requires_grad(true);
    sum(silu(matmul(x, x)) * x).backward();
  };
  step();
  const int64_t live = cpu.memory_stats().live_bytes;
  const int64_t held = live + cpu.memory_stats().cached_bytes;
  for (int i = 0; i < 5; ++i) step();
  EXPECT_EQ(cpu.memory_stats().live_bytes, live);
  EXPECT_EQ(cpu.memory_stats().live_bytes + cpu.memory_stats().cached_bytes, held);
}

}  // namespace
}  // namespace mutilde
