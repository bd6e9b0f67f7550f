// Fragments: loads and stores in both layouts, products of all types.
#include <gtest/gtest.h>
#include <mma.h>

#include "cuda/launch.h"
#include "tests/cuda/device_array.h"

namespace mutilde::cuda {
namespace {

namespace wmma = nvcuda::wmma;

/// d = a b + c of one 16 x 16 piece each, doubled. lda, ...: the matrices lie in wider ones.
template <class T, class LayoutA, class LayoutB>
__global__ void product(const T* a, int lda, const T* b, int ldb, const float* c, float* d, int ldd,
                        wmma::layout_t layout_d) {
  wmma::fragment<wmma::matrix_a, 16, 16, 16, T, LayoutA> fragment_a;
  wmma::fragment<wmma::matrix_b, 16, 16, 16, T, LayoutB> fragment_b;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
  wmma::load_matrix_sync(fragment_a, a, lda);
  wmma::load_matrix_sync(fragment_b, b, ldb);
  wmma::load_matrix_sync(sum, c, 16, wmma::mem_row_major);
  wmma::mma_sync(sum, fragment_a, fragment_b, sum);
  for (int i = 0; i < sum.num_elements; ++i) sum.x[i] *= 2.0F;
  wmma::store_matrix_sync(d, sum, ldd, layout_d);
}

template <class T, class LayoutA, class LayoutB>
void check_product(wmma::layout_t layout_d) {
  constexpr bool kRowsA = std::is_same_v<LayoutA, wmma::row_major>;
  constexpr bool kRowsB = std::is_same_v<LayoutB, wmma::row_major>;
  const int lda = 24, ldb = 16, ldd = 20;
  std::vector<T> a(16 * lda), b(16 * ldb);
  std::vector<float> c = numbers<float>(256, 3);
  const std::vector<float> numbers_a = numbers<float>(a.size(), 1);
  const std::vector<float> numbers_b = numbers<float>(b.size(), 2);
  for (size_t i = 0; i < a.size(); ++i) a[i] = T(numbers_a[i]);
  for (size_t i = 0; i < b.size(); ++i) b[i] = T(numbers_b[i]);
  const DeviceArray<T> in_a(a), in_b(b);
  const DeviceArray<float> in_c(c);
  DeviceArray<float> out(16 * ldd);
  launch<product<T, LayoutA, LayoutB>>({.grid = 1, .block = 32}, in_a.data(), lda, in_b.data(), ldb,
                                       in_c.data(), out.data(), ldd, layout_d);
  const std::vector<float> host = out.to_host();
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      double sum = c[i * 16 + j];
      for (int k = 0; k < 16; ++k) {
        const float x = a[kRowsA ? i * lda + k : k * lda + i];
        const float y = b[kRowsB ? k * ldb + j : j * ldb + k];
        sum += static_cast<double>(x) * y;
      }
      // 17 terms of at most 1, added in float; tensor cores cut off where we round, an ulp each.
      EXPECT_NEAR(host[layout_d == wmma::mem_row_major ? i * ldd + j : j * ldd + i], 2 * sum,
                  2 * 17 * 17 * 0x1p-23);
    }
  }
}

TEST(Wmma, MultipliesBfloat16InEveryLayout) {
  check_product<__nv_bfloat16, wmma::row_major, wmma::row_major>(wmma::mem_row_major);
  check_product<__nv_bfloat16, wmma::row_major, wmma::col_major>(wmma::mem_row_major);
  check_product<__nv_bfloat16, wmma::col_major, wmma::row_major>(wmma::mem_row_major);
  check_product<__nv_bfloat16, wmma::col_major, wmma::col_major>(wmma::mem_col_major);
}

TEST(Wmma, MultipliesHalfInEveryLayout) {
  check_product<__half, wmma::row_major, wmma::row_major>(wmma::mem_col_major);
  check_product<__half, wmma::row_major, wmma::col_major>(wmma::mem_row_major);
  check_product<__half, wmma::col_major, wmma::row_major>(wmma::mem_row_major);
  check_product<__half, wmma::col_major, wmma::col_major>(wmma::mem_row_major);
}

/// out = a b of 16 x 8 and 8 x 16.
template <class LayoutA, class LayoutB>
__global__ void tf32_product(const float* a, int lda, const float* b, int ldb, float* out) {
  wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, LayoutA> fragment_a;
  wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, LayoutB> fragment_b;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> sum;
  wmma::load_matrix_sync(fragment_a, a, lda);
  wmma::load_matrix_sync(fragment_b, b, ldb);
  for (int i = 0; i < fragment_a.num_elements; ++i) {
    fragment_a.x[i] = wmma::__float_to_tf32(fragment_a.x[i]);
    fragment_b.x[i] = wmma::__float_to_tf32(fragment_b.x[i]);
  }
  wmma::fill_fragment(sum, 0.0F);
  wmma::mma_sync(sum, fragment_a, fragment_b, sum);
  wmma::store_matrix_sync(out, sum, 16, wmma::mem_row_major);
}

template <class LayoutA, class LayoutB>
void check_tf32(int lda, int ldb) {
  constexpr bool kRowsA = std::is_same_v<LayoutA, wmma::row_major>;
  constexpr bool kRowsB = std::is_same_v<LayoutB, wmma::row_major>;
  const std::vector<float> a = numbers<float>(16 * 20, 1), b = numbers<float>(16 * 20, 2);
  const DeviceArray<float> in_a(a), in_b(b);
  DeviceArray<float> out(256);
  launch<tf32_product<LayoutA, LayoutB>>({.grid = 1, .block = 32}, in_a.data(), lda, in_b.data(),
                                         ldb, out.data());
  const std::vector<float> host = out.to_host();
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      double sum = 0;
      for (int k = 0; k < 8; ++k) {
        const double x = a[kRowsA ? i * lda + k : k * lda + i];
        const double y = b[kRowsB ? k * ldb + j : j * ldb + k];
        sum += x * y;
      }
      // 8 products of at most 1, whose factors keep 11 bits: half an ulp is 2^-11 of each.
      EXPECT_NEAR(host[i * 16 + j], sum, 8 * 2 * 0x1p-11 + 8 * 8 * 0x1p-23);
    }
  }
}

TEST(Wmma, MultipliesTf32InEveryLayout) {
  check_tf32<wmma::row_major, wmma::row_major>(12, 20);
  check_tf32<wmma::row_major, wmma::col_major>(12, 8);
  check_tf32<wmma::col_major, wmma::row_major>(20, 16);
  check_tf32<wmma::col_major, wmma::col_major>(16, 12);
}

/// out: 16 x 16 sums of eight x / 8.
__global__ void average(const float* x, float* out) {
  wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> a;
  wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::row_major> b;
  wmma::fragment<wmma::accumulator, 16, 16, 8, float> sum;
  wmma::fill_fragment(a, wmma::__float_to_tf32(*x));
  wmma::fill_fragment(b, 0.125F);
  wmma::fill_fragment(sum, 0.0F);
  wmma::mma_sync(sum, a, b, sum);
  wmma::store_matrix_sync(out, sum, 16, wmma::mem_row_major);
}

TEST(Wmma, ATf32HasElevenBits) {
  const DeviceArray<float> x(std::vector<float>{1 + 0x1p-10F + 0x1.8p-11F});
  DeviceArray<float> out(256);
  launch<average>({.grid = 1, .block = 32}, x.data(), out.data());
  EXPECT_EQ(out.to_host(), std::vector<float>(256, 1 + 0x1p-9F));  // rounded to nearest
}

}  // namespace
}  // namespace mutilde::cuda
