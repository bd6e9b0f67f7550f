// Matrix products: dense layers, and batches of products with either side transposed.
#include "cuda/conv_short.h"
#include "cuda/cuda_backend.h"
#include "cuda/product.h"

namespace mutilde::cuda {

namespace {

/// A dense layer is a convolution by 1 x 1 of one image of `rows` pixels.
ConvSizes as_convolution(int64_t rows, int64_t C, int64_t C_out) {
  const auto size = [](int64_t n) { return int_size("matmul", n); };
  return {1, size(rows), size(C), 1, size(rows), size(C_out), 1, 1, 1, 0};
}

/// By a rung that multiplies a short type, which has three of the four products of two matrices. Returns false where
/// it does not take the sizes.
bool multiply_short(Backend& backend, const Way& way, const ConstView& a, bool transpose_a,
                    const ConstView& b, bool transpose_b, const ConstView& bias,
                    const ConstView& residual, int64_t M, int64_t N, int64_t K, const View& out) {
  if (M == 0 || N == 0 || K == 0 || (transpose_a && transpose_b)) return false;
  const auto multiply = [&](const auto& f) {
    for_short(way.factors, [&](auto zero) {
      using E = decltype(zero);
      const Shortened<E> left(backend, a), right(backend, b);
      if (out.dtype == DType::kFloat32) return f(left.data(), right.data(), out.as<float>());
      f(left.data(), right.data(), out.as<E>());
    });
  };
  if (transpose_a) {  // the gradient of a dense layer's weight, whose pixels are k
    const ConvSizes s = as_convolution(K, N, M);
    if (!conv2d_backward_wgmma_takes(s) || out.dtype != DType::kFloat32) return false;
    multiply([&](const auto* dout, const auto* x, auto*) {
      conv2d_backward_weight_short(backend, way.rung, s, 1, x, dout, out.as<float>());
    });
    return true;
  }
  if (transpose_b) {
    const ConvSizes s = as_convolution(M, K, N);
    if (!conv2d_wgmma_takes(s, is_short(out.dtype))) return false;
    multiply([&](const auto* x, const auto* weight, auto* y) {
      using Out = std::remove_pointer_t<decltype(y)>;
      const bool adds = is_aligned(residual.data, 16);
      conv2d_short(way.rung, s, 1, x, weight, bias.as<float>(), adds ? residual.as<Out>() : nullptr,
                   y);
      if (!adds) backend.accumulate(residual, out);
    });
    return true;
  }
  const ConvSizes s = as_convolution(M, N, K);  // the gradient of its input
  if (!conv2d_backward_wgmma_takes(s)) return false;
  multiply([&](const auto* dout, const auto* weight, auto* dx) {
    conv2d_backward_input_short(way.rung, s, 1, dout, weight, dx);
  });
  return true;
}

/// Calls f(X{}, Y{}, Out{}) with what a, b and out are stored as. Of a dense layer and its gradients in a
/// short type the weight stays float32.
template <class F>
void for_matrices(const ConstView& a, const ConstView& b, const View& out, const F& f) {
  constexpr DType kLong = DType::kFloat32;
  if (!is_short(a.dtype) && b.dtype == a.dtype && out.dtype == a.dtype)
    return for_float(a.dtype, [&](auto zero) { f(zero, zero, zero); });
  const bool short_b = b.dtype == a.dtype, short_out = out.dtype == a.dtype;
  if (is_short(a.dtype) && (short_b || (b.dtype == kLong && short_out)) &&
      (short_out || out.dtype == kLong)) {
    return for_short(a.dtype, [&](auto zero) {
      if (!short_b) return f(zero, float{}, zero);
      if (short_out) return f(zero, zero, zero);
      f(zero, zero, float{});
    });
  }
  fail<DTypeError>("cuda matmul: no product of {} and {} to {}", name_of(a.dtype), name_of(b.dtype),
                   name_of(out.dtype));
}

}  // namespace

void CudaBackend::matmul(ConstView a, bool transpose_a, ConstView b, bool transpose_b, View out) {
  const int64_t batch = out.shape[0], M = out.shape[1], N = out.shape[2];
  const int64_t K = a.shape[transpose_a ? 1 : 2];
  const int64_t a_size = a.shape[0] == 1 ? 0 : M * K, b_size = b.shape[0] == 1 ? 0 : K * N;
  const Way way = way_for(a.dtype, rung_);
  if (batch == 1 && multiplies_short(way.rung) &&
      multiply_short(*this, way, a, transpose_a, b, transpose_b, {}, {}, M, N, K, out))
    return;
  for_matrices(a, b, out, [&](auto zero_a, auto zero_b, auto zero_out) {
    using A = decltype(zero_a);
    using B = decltype(zero_b);
    using Out = decltype(zero_out);
    const auto multiply = [&](const auto& left, const auto& right) {
      if (batch == 1)
        return long_product(*this, way, "matmul", M, N, K, left, right, out.as<Out>());
      batched_product(way, "matmul", batch, M, N, K, left, right,
                      Store<Out>{out.as<Out>(), M, N, nullptr});
    };
    const auto with_right = [&](const auto& left) {
      if (transpose_b) return multiply(left, Matrix<B, true>{b.as<B>(), K, b_size});
      multiply(left, Matrix<B, false>{b.as<B>(), N, b_size});
    };
    if (transpose_a) return with_right(Matrix<A, false>{a.as<A>(), M, a_size});
    with_right(Matrix<A, true>{a.as<A>(), K, a_size});
  });
}

void CudaBackend::linear(ConstView x, ConstView weight, ConstView bias, ConstView residual,
                         View out) {
  const int64_t M = x.shape[0], K = x.shape[1], N = weight.shape[0];
  const Way way = way_for(x.dtype, rung_);
  if (multiplies_short(way.rung) &&
      multiply_short(*this, way, x, false, weight, true, bias, residual, M, N, K, out))
    return;
  for_stored(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Weight = Computed<T>;
    batched_product(way, "linear", 1, M, N, K, Matrix<T, true>{x.as<T>(), K, 0},
                    Matrix<Weight, true>{weight.as<Weight>(), K, 0},
                    Store<T>{out.as<T>(), M, N, bias.as<Weight>()});
  });
  if (residual) accumulate(residual, out);
}

}  // namespace mutilde::cuda
