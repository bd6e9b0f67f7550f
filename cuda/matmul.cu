// Matrix products: dense layers, and batches of products with either side transposed.
#include "cuda/cuda_backend.h"
#include "cuda/hopper/hopper.h"
#include "cuda/product.h"

namespace mutilde::cuda {

namespace {

/// A dense layer is a convolution by 1 x 1 of one image of `rows` pixels.
ConvSizes as_convolution(int64_t rows, int64_t C, int64_t C_out) {
  const auto size = [](int64_t n) { return int_size("matmul", n); };
  return {1, size(rows), size(C), 1, size(rows), size(C_out), 1, 1, 1, 0};
}

/// Hopper's rung, which has three of the four products of two matrices. Returns false where it does not
/// take the sizes.
bool multiply_on_hopper(Backend& backend, const ConstView& a, bool transpose_a, const ConstView& b,
                        bool transpose_b, const ConstView& bias, int64_t M, int64_t N, int64_t K,
                        float* out) {
  if (M == 0 || N == 0 || K == 0 || (transpose_a && transpose_b)) return false;
  if (transpose_a) {  // the gradient of a dense layer's weight, whose pixels are k
    const ConvSizes s = as_convolution(K, N, M);
    if (!conv2d_backward_weight_wgmma_takes(s)) return false;
    const Shortened dout(backend, a), x(backend, b);
    sum_chunks(backend, conv2d_backward_weight_chunks(s, 1), M * N, out, [&](float* partial) {
      conv2d_backward_weight_wgmma(s, 1, x.data(), dout.data(), partial, nullptr);
    });
    return true;
  }
  if (transpose_b) {
    const ConvSizes s = as_convolution(M, K, N);
    if (!conv2d_wgmma_takes(s)) return false;
    const Shortened x(backend, a), weight(backend, b);
    conv2d_wgmma(s, 1, x.data(), weight.data(), bias.as<float>(), out, nullptr);
    return true;
  }
  if (!matmul_wgmma_takes(M, N, K)) return false;
  const Shortened left(backend, a), right(backend, b);
  matmul_wgmma(left.data(), right.data(), out, int_size("matmul", M), int_size("matmul", N),
               int_size("matmul", K), nullptr);
  return true;
}

}  // namespace

void CudaBackend::matmul(ConstView a, bool transpose_a, ConstView b, bool transpose_b, View out) {
  const int64_t batch = out.shape[0], M = out.shape[1], N = out.shape[2];
  const int64_t K = a.shape[transpose_a ? 1 : 2];
  const int64_t a_size = a.shape[0] == 1 ? 0 : M * K, b_size = b.shape[0] == 1 ? 0 : K * N;
  if (batch == 1 && rung_for(out.dtype, rung_) == Rung::kHopper &&
      multiply_on_hopper(*this, a, transpose_a, b, transpose_b, {}, M, N, K, out.as<float>()))
    return;
  for_float(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto multiply = [&](const auto& left, const auto& right) {
      if (batch == 1)
        return long_product(*this, rung_, "matmul", M, N, K, left, right, out.as<T>());
      batched_product(rung_, "matmul", batch, M, N, K, left, right,
                      Store<T>{out.as<T>(), M, N, nullptr});
    };
    const auto with_right = [&](const auto& left) {
      if (transpose_b) return multiply(left, Matrix<T, true>{b.as<T>(), K, b_size});
      multiply(left, Matrix<T, false>{b.as<T>(), N, b_size});
    };
    if (transpose_a) return with_right(Matrix<T, false>{a.as<T>(), M, a_size});
    with_right(Matrix<T, true>{a.as<T>(), K, a_size});
  });
}

void CudaBackend::linear(ConstView x, ConstView weight, ConstView bias, View out) {
  const int64_t M = x.shape[0], K = x.shape[1], N = weight.shape[0];
  if (rung_for(x.dtype, rung_) == Rung::kHopper &&
      multiply_on_hopper(*this, x, false, weight, true, bias, M, N, K, out.as<float>()))
    return;
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    batched_product(rung_, "linear", 1, M, N, K, Matrix<T, true>{x.as<T>(), K, 0},
                    Matrix<T, true>{weight.as<T>(), K, 0},
                    Store<T>{out.as<T>(), M, N, bias.as<T>()});
  });
}

}  // namespace mutilde::cuda
