#include "cuda/conv_mma.h"
#include "cuda/conv_operands.h"
#include "cuda/product.h"
#include "cuda/product_mma.h"

namespace mutilde::cuda {
namespace {

int64_t output_pixels(const ConvSizes& s, int N) { return int64_t{N} * s.H_out * s.W_out; }

ProductSizes sizes(int64_t M, int64_t N, int64_t K, int chunk, int chunks) {
  const auto size = [](int64_t n) { return int_size("conv2d", n); };
  return {size(M), size(N), size(K), chunk, chunks};
}
ProductSizes sizes(int64_t M, int64_t N, int64_t K) {
  return sizes(M, N, K, int_size("conv2d", K), 1);
}

/// Of the pixels that are k, as many as give a GPU of 128 multiprocessors its four blocks each once, and at least
/// 16 steps. A constant, so that every GPU adds up the same chunks.
int pixels_of_chunk(const ConvSizes& s, int N) {
  constexpr int64_t kBlocks = 512, kLeast = 16 * mma::kDepth;
  const int64_t pixels = output_pixels(s, N);
  const int64_t tiles =
      ceil_div<int64_t>(s.C_out, mma::kRows) * ceil_div<int64_t>(int64_t{s.kH} * s.kW * s.C, 128);
  const int64_t chunks =
      std::clamp<int64_t>(std::min(kBlocks / tiles, pixels / kLeast), 1, kBlocks);
  const int64_t steps = ceil_div<int64_t>(ceil_div(pixels, chunks), mma::kDepth);
  return int_size("conv2d", steps * mma::kDepth);
}

}  // namespace

template <class E, class Out>
void conv2d_mma(const ConvSizes& s, int N, const E* x, const E* weight, const float* bias,
                const Out* residual, Out* out, cudaStream_t stream) {
  const int64_t K = int64_t{s.kH} * s.kW * s.C;
  mma::launch_product(sizes(output_pixels(s, N), s.C_out, K), 1, Patches<E>{x, s},
                      Matrix<E, true>{weight, K, 0}, bias, residual, out, stream);
}

template <class E, class Out>
void conv2d_backward_input_mma(const ConvSizes& s, int N, const E* dout, const E* weight, Out* dx,
                               cudaStream_t stream) {
  const int64_t K = int64_t{s.kH} * s.kW * s.C_out, pixels = int64_t{N} * s.H * s.W;
  const Out* residual = nullptr;
  mma::launch_product(sizes(pixels, s.C, K), 1, GradientPatches<E>{dout, s},
                      WeightByInput<E>{weight, s}, nullptr, residual, dx, stream);
}

int conv2d_backward_weight_mma_chunks(const ConvSizes& s, int N) {
  return static_cast<int>(ceil_div<int64_t>(output_pixels(s, N), pixels_of_chunk(s, N)));
}

template <class E>
void conv2d_backward_weight_mma(const ConvSizes& s, int N, const E* x, const E* dout,
                                float* partial, cudaStream_t stream) {
  const int chunks = conv2d_backward_weight_mma_chunks(s, N);
  const float* residual = nullptr;
  mma::launch_product(sizes(s.C_out, int64_t{s.kH} * s.kW * s.C, output_pixels(s, N),
                            pixels_of_chunk(s, N), chunks),
                      chunks, Matrix<E, false>{dout, s.C_out, 0}, PatchesTransposed<E>{{x, s}},
                      nullptr, residual, partial, stream);
}

#define MUTILDE_INSTANTIATE(E, Out)                                                             \
  template void conv2d_mma(const ConvSizes&, int, const E*, const E*, const float*, const Out*, \
                           Out*, cudaStream_t);                                                 \
  template void conv2d_backward_input_mma(const ConvSizes&, int, const E*, const E*, Out*,      \
                                          cudaStream_t);
MUTILDE_INSTANTIATE(__nv_bfloat16, float)
MUTILDE_INSTANTIATE(__nv_bfloat16, __nv_bfloat16)
MUTILDE_INSTANTIATE(__half, float)
MUTILDE_INSTANTIATE(__half, __half)
#undef MUTILDE_INSTANTIATE
template void conv2d_backward_weight_mma(const ConvSizes&, int, const __nv_bfloat16*,
                                         const __nv_bfloat16*, float*, cudaStream_t);
template void conv2d_backward_weight_mma(const ConvSizes&, int, const __half*, const __half*,
                                         float*, cudaStream_t);

}  // namespace mutilde::cuda
