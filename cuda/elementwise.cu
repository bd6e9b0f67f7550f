// Elementwise kernels: one kernel over a functor, and one that broadcasts.
//
// What bounds them is memory: a few instructions for 8 or 12 bytes. So all that matters is that
//   - consecutive threads take consecutive elements: a warp's 32 loads become one of 128 bytes;
//   - each thread has a load under way while others compute: hence many warps, and no barrier;
//   - the index is 64 bits wide, since 2^31 elements are but 8 GB.
#include <cmath>
#include <limits>
#include <type_traits>

#include "cuda/cuda_backend.h"
#include "cuda/functions.h"
#include "cuda/parallel.h"
#include "cuda/strided.h"

namespace mutilde::cuda {
namespace {

/// out[i] = f(in[i]...), as for_each does it, but for `width` neighbours at a time: n counts packs. Without
/// __restrict__: out may be one of the inputs.
template <int width, class Out, class F, class... In>
__global__ void map(int64_t n, F f, Pack<Out, width>* out, const Pack<In, width>*... in) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  const auto apply = [&](const Pack<In, width>&... x) {
    Pack<Out, width> result;
    for (int j = 0; j < width; ++j) result.at[j] = stored<Out>(f(number(x.at[j])...));
    return result;
  };
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    out[i] = apply(Pack<In, width>(in[i])...);
  }
}

template <int width, class Out, class F, class... In>
void launch_packs(int64_t n, const F& f, Out* out, const In*... in) {
  launch<map<width, Out, F, In...>>({.grid = blocks_for(n / width), .block = kBlockThreads},
                                    n / width, f, reinterpret_cast<Pack<Out, width>*>(out),
                                    reinterpret_cast<const Pack<In, width>*>(in)...);
}

template <class Out, class F, class... In>
void launch_map(int64_t n, const F& f, Out* out, const In*... in) {
  constexpr int kTogether = 16 / std::max({sizeof(Out), sizeof(In)...});
  if (n == 0) return;
  const bool aligned =
      is_aligned(out, sizeof(Out) * kTogether) && (is_aligned(in, sizeof(In) * kTogether) && ...);
  if (aligned && n % kTogether == 0) return launch_packs<kTogether>(n, f, out, in...);
  launch_packs<1>(n, f, out, in...);
}

/// out = f(a, b), each broadcast. The threads write neighbours; what they read are neighbours too,
/// or the same element, unless the innermost axis is short.
template <class T, class Out, class F>
struct BroadcastMap {
  F f;
  Out* out;
  const T *a, *b;
  Strided a_at, b_at;
  __device__ void operator()(int64_t i) const {
    out[i] = stored<Out>(f(number(a[a_at(i)]), number(b[b_at(i)])));
  }
};

template <class T, class Out, class F>
void launch_broadcast(const F& f, const View& out, const ConstView& a, const ConstView& b) {
  if (a.shape == b.shape) return launch_map(out.numel(), f, out.as<Out>(), a.as<T>(), b.as<T>());
  launch_for_each(out.numel(), BroadcastMap<T, Out, F>{f, out.as<Out>(), a.as<T>(), b.as<T>(),
                                                       broadcast(a.shape, out.shape),
                                                       broadcast(b.shape, out.shape)});
}

template <class Word>
struct Where {
  Word* out;
  const uint8_t* condition;
  const Word *a, *b;
  Strided condition_at, a_at, b_at;
  __device__ void operator()(int64_t i) const {
    out[i] = condition[condition_at(i)] != 0 ? a[a_at(i)] : b[b_at(i)];
  }
};

// Conversions between what dtypes are computed with.

/// Floating to integer truncates, saturates at the ends of the integer's range and maps NaN to 0.
/// The upper end may round up to a power of two as a From; all below it is in range.
template <class To, class From>
struct Convert {
  To lowest = std::is_integral_v<To> ? std::numeric_limits<To>::min() : To{};
  To highest = std::is_integral_v<To> ? std::numeric_limits<To>::max() : To{};

  __device__ To operator()(From value) const {
    if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
      if (value <= static_cast<From>(lowest)) return lowest;
      if (value >= static_cast<From>(highest)) return highest;
      return value == value ? static_cast<To>(value) : To{0};
    } else {
      return static_cast<To>(value);
    }
  }
};
template <class T>
struct Fill {
  T* out;
  double value;
  Convert<Computed<T>, double> convert;
  __device__ void operator()(int64_t i) const { out[i] = stored<T>(convert(value)); }
};

/// Calls f(T{}) with the element type of any dtype.
template <class F>
void for_any(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat64:
      return f(double{});
    case DType::kBFloat16:
      return f(__nv_bfloat16{});
    case DType::kFloat16:
      return f(__half{});
    case DType::kInt32:
      return f(int32_t{});
    case DType::kInt64:
      return f(int64_t{});
    case DType::kUInt8:
      return f(uint8_t{});
  }
}

}  // namespace

void CudaBackend::fill(double value, View out) {
  for_any(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_for_each(out.numel(), Fill<T>{out.as<T>(), value, {}});
  });
}

void CudaBackend::cast(ConstView x, View out) {
  for_any(x.dtype, [&](auto from) {
    for_any(out.dtype, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      launch_map(x.numel(), Convert<Computed<To>, Computed<From>>{}, out.as<To>(), x.as<From>());
    });
  });
}

void CudaBackend::unary(UnaryOp op, ConstView x, View out) {
  for_stored(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto apply = [&](const auto& f) { launch_map(x.numel(), f, out.as<T>(), x.as<T>()); };
    switch (op) {
      case UnaryOp::kNeg:
        return apply(Neg{});
      case UnaryOp::kExp:
        return apply(Exp{});
      case UnaryOp::kLog:
        return apply(Log{});
      case UnaryOp::kSqrt:
        return apply(Sqrt{});
      case UnaryOp::kSquare:
        return apply(Square{});
      case UnaryOp::kReciprocal:
        return apply(Reciprocal{});
      case UnaryOp::kTanh:
        return apply(Tanh{});
      case UnaryOp::kSigmoid:
        return apply(Sigmoid{});
      case UnaryOp::kSilu:
        return apply(Silu{});
      case UnaryOp::kSin:
        return apply(Sin{});
      case UnaryOp::kCos:
        return apply(Cos{});
      case UnaryOp::kAbs:
        return apply(Abs{});
    }
  });
}

void CudaBackend::unary_backward(UnaryOp op, ConstView x, ConstView y, ConstView dout, View dx) {
  for_stored(dout.dtype, [&](auto zero) {
    using T = decltype(zero);
    const auto from = [&](const char* name, const ConstView& saved, const auto& f) {
      if (!saved && dx.numel() > 0) {  // the data of an empty tensor is null too
        fail<Error>("unary_backward: UnaryOp {} needs {}, which was not saved (Saves, core/ops)",
                    static_cast<int>(op), name);
      }
      launch_map(dx.numel(), f, dx.as<T>(), saved.as<T>(), dout.as<T>());
    };
    const auto from_x = [&](const auto& f) { from("x", x, f); };
    const auto from_y = [&](const auto& f) { from("y", y, f); };
    switch (op) {
      case UnaryOp::kNeg:
        return launch_map(dx.numel(), Neg{}, dx.as<T>(), dout.as<T>());
      case UnaryOp::kExp:
        return from_y(ExpBackward{});
      case UnaryOp::kLog:
        return from_x(LogBackward{});
      case UnaryOp::kSqrt:
        return from_y(SqrtBackward{});
      case UnaryOp::kSquare:
        return from_x(SquareBackward{});
      case UnaryOp::kReciprocal:
        return from_y(ReciprocalBackward{});
      case UnaryOp::kTanh:
        return from_y(TanhBackward{});
      case UnaryOp::kSigmoid:
        return from_y(SigmoidBackward{});
      case UnaryOp::kSilu:
        return from_x(SiluBackward{});
      case UnaryOp::kSin:
        return from_x(SinBackward{});
      case UnaryOp::kCos:
        return from_x(CosBackward{});
      case UnaryOp::kAbs:
        return from_x(AbsBackward{});
    }
  });
}

void CudaBackend::affine(ConstView x, double scale, double shift, View out) {
  for_stored(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Number = Computed<T>;
    const Affine<Number> f{static_cast<Number>(scale), static_cast<Number>(shift)};
    launch_map(x.numel(), f, out.as<T>(), x.as<T>());
  });
}

void CudaBackend::clamp(ConstView x, double low, double high, View out) {
  for_stored(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Number = Computed<T>;
    const Clamp<Number> f{static_cast<Number>(low), static_cast<Number>(high)};
    launch_map(x.numel(), f, out.as<T>(), x.as<T>());
  });
}

void CudaBackend::clamp_backward(ConstView x, double low, double high, ConstView dout, View dx) {
  for_stored(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using Number = Computed<T>;
    const ClampBackward<Number> f{static_cast<Number>(low), static_cast<Number>(high)};
    launch_map(x.numel(), f, dx.as<T>(), x.as<T>(), dout.as<T>());
  });
}

void CudaBackend::binary(BinaryOp op, ConstView a, ConstView b, View out) {
  for_stored(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    switch (op) {
      case BinaryOp::kAdd:
        return launch_broadcast<T, T>(Add{}, out, a, b);
      case BinaryOp::kSub:
        return launch_broadcast<T, T>(Sub{}, out, a, b);
      case BinaryOp::kMul:
        return launch_broadcast<T, T>(Mul{}, out, a, b);
      case BinaryOp::kDiv:
        return launch_broadcast<T, T>(Div{}, out, a, b);
      case BinaryOp::kLess:
        return launch_broadcast<T, uint8_t>(Less{}, out, a, b);
      case BinaryOp::kGreaterEqual:
        return launch_broadcast<T, uint8_t>(GreaterEqual{}, out, a, b);
    }
  });
}

void CudaBackend::where(ConstView condition, ConstView a, ConstView b, View out) {
  for_word(out.dtype, [&](auto zero) {
    using Word = decltype(zero);
    launch_for_each(out.numel(),
                    Where<Word>{out.as<Word>(), condition.as<uint8_t>(), a.as<Word>(), b.as<Word>(),
                                broadcast(condition.shape, out.shape),
                                broadcast(a.shape, out.shape), broadcast(b.shape, out.shape)});
  });
}

void CudaBackend::accumulate(ConstView x, View into) {
  for_stored(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* old = into.as<T>();
    launch_map(x.numel(), Add{}, into.as<T>(), old, x.as<T>());
  });
}

}  // namespace mutilde::cuda
