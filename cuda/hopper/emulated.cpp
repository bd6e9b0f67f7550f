// What stands in for this folder's kernels where nvcc does not compile them: the plain rung, on the same
// factors. So all that calls them is tested without a GPU.
#include <vector>

#include "cuda/hopper/hopper.h"
#include "cuda/launch.h"
#include "cuda/matmul_ladder.h"

namespace mutilde::cuda {
namespace {

std::vector<float> widened(const __nv_bfloat16* values, size_t n) { return {values, values + n}; }

void require(bool takes_sizes) {
  if (!takes_sizes) fail<Error>("wgmma: the copy engine cannot copy rows of such sizes");
}

}  // namespace

bool is_hopper() { return false; }  // it is asked for by name

void matmul_wgmma(const __nv_bfloat16* a, const __nv_bfloat16* b, float* out, int M, int N, int K,
                  cudaStream_t stream) {
  require(matmul_wgmma_takes(M, N, K));
  const auto long_a = widened(a, size_t(M) * K), long_b = widened(b, size_t(K) * N);
  matmul_plain(long_a.data(), long_b.data(), out, M, N, K, stream);
}

void conv2d_wgmma(const ConvSizes& s, int N, const __nv_bfloat16* x, const __nv_bfloat16* weight,
                  const float* bias, float* out, cudaStream_t) {
  require(conv2d_wgmma_takes(s));
  const auto long_x = widened(x, size_t(N) * s.H * s.W * s.C);
  const auto long_weight = widened(weight, size_t(s.C_out) * s.kH * s.kW * s.C);
  conv2d_plain(s, long_x.data(), long_weight.data(), bias, out, int64_t{N} * s.H_out * s.W_out);
}

int conv2d_backward_weight_chunks(const ConvSizes&, int N) { return N; }

void conv2d_backward_weight_wgmma(const ConvSizes& s, int N, const __nv_bfloat16* x,
                                  const __nv_bfloat16* dout, float* partial, cudaStream_t) {
  require(conv2d_backward_weight_wgmma_takes(s));
  const int pixels = s.H_out * s.W_out;
  for (int n = 0; n < N; ++n) {
    const auto long_x = widened(x + size_t(n) * s.H * s.W * s.C, size_t(s.H) * s.W * s.C);
    const auto long_dout = widened(dout + size_t(n) * pixels * s.C_out, size_t(pixels) * s.C_out);
    conv2d_plain_backward_weight(s, long_x.data(), long_dout.data(),
                                 partial + size_t(n) * s.C_out * s.kH * s.kW * s.C, pixels);
  }
}

}  // namespace mutilde::cuda
