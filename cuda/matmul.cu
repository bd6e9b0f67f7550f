// Matrix products: dense layers, and batches of products with either side transposed.
#include "cuda/cuda_backend.h"
#include "cuda/product.h"

namespace mutilde::cuda {

void CudaBackend::matmul(ConstView a, bool transpose_a, ConstView b, bool transpose_b, View out) {
  const int64_t batch = out.shape[0], M = out.shape[1], N = out.shape[2];
  const int64_t K = a.shape[transpose_a ? 1 : 2];
  const int64_t a_size = a.shape[0] == 1 ? 0 : M * K, b_size = b.shape[0] == 1 ? 0 : K * N;
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
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    batched_product(rung_, "linear", 1, M, N, K, Matrix<T, true>{x.as<T>(), K, 0},
                    Matrix<T, true>{weight.as<T>(), K, 0},
                    Store<T>{out.as<T>(), M, N, bias.as<T>()});
  });
}

}  // namespace mutilde::cuda
