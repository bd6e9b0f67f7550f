// Elementwise kernels: one kernel over a functor.
//
// What bounds them is memory: a few instructions for 8 or 12 bytes. So all that matters is that
//   - consecutive threads take consecutive elements: a warp's 32 loads become one of 128 bytes;
//   - each thread has a load under way while others compute: hence many warps, and no barrier;
//   - the index is 64 bits wide, since 2^31 elements are but 8 GB.
#include <algorithm>
#include <cmath>

#include "cuda/elementwise.h"
#include "cuda/launch.h"

namespace mutilde::cuda {
namespace {

/// out[i] = f(in[i]...). A grid-stride loop: any grid does any n, so that the grid can be what
/// fills the GPU and not what n asks for. Without __restrict__: out may be one of the inputs.
template <class T, class F, class... In>
__global__ void map(int64_t n, F f, T* out, const In*... in) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    out[i] = f(in[i]...);
  }
}

template <class T, class F, class... In>
void launch_map(cudaStream_t stream, int64_t n, const F& f, T* out, const In*... in) {
  if (n == 0) return;  // a grid of no blocks is an error
  constexpr int64_t kThreads = 256;
  // 2048 threads are all that a multiprocessor holds, and the largest GPU has some 150 of them:
  // twice that many blocks of 256, so that those that finish early are followed by others.
  constexpr int64_t kMaxBlocks = 2 * 150 * 2048 / kThreads;
  const int64_t blocks = std::min((n + kThreads - 1) / kThreads, kMaxBlocks);
  launch<map<T, F, In...>>({.grid = static_cast<unsigned>(blocks),
                            .block = static_cast<unsigned>(kThreads),
                            .stream = stream},
                           n, f, out, in...);
}

/// Calls f(T{}) with the element type.
template <class F>
void for_float(DType dtype, const F& f) {
  if (dtype == DType::kFloat32) return f(float{});
  if (dtype == DType::kFloat64) return f(double{});
  fail<DTypeError>("cuda kernel: float32 or float64 expected, {} given", name_of(dtype));
}

// Functors. A kernel's template argument must have a name that both compilers can spell, which a
// lambda has not.

struct Neg {
  template <class T>
  __device__ T operator()(T x) const {
    return -x;
  }
};
struct Exp {
  template <class T>
  __device__ T operator()(T x) const {
    return std::exp(x);
  }
};
struct Log {
  template <class T>
  __device__ T operator()(T x) const {
    return std::log(x);
  }
};
struct Sqrt {
  template <class T>
  __device__ T operator()(T x) const {
    return std::sqrt(x);
  }
};
struct Square {
  template <class T>
  __device__ T operator()(T x) const {
    return x * x;
  }
};
struct Reciprocal {
  template <class T>
  __device__ T operator()(T x) const {
    return T{1} / x;
  }
};
struct Tanh {
  template <class T>
  __device__ T operator()(T x) const {
    return std::tanh(x);
  }
};
struct Sigmoid {
  template <class T>
  __device__ T operator()(T x) const {
    return T{1} / (T{1} + std::exp(-x));
  }
};
struct Silu {
  template <class T>
  __device__ T operator()(T x) const {
    return x / (T{1} + std::exp(-x));
  }
};
struct Sin {
  template <class T>
  __device__ T operator()(T x) const {
    return std::sin(x);
  }
};
struct Cos {
  template <class T>
  __device__ T operator()(T x) const {
    return std::cos(x);
  }
};
struct Abs {
  template <class T>
  __device__ T operator()(T x) const {
    return std::abs(x);
  }
};

template <class T>
struct Affine {
  T scale, shift;
  __device__ T operator()(T x) const { return x * scale + shift; }
};
template <class T>
struct Clamp {
  T low, high;
  __device__ T operator()(T x) const { return x < low ? low : (x > high ? high : x); }
};
template <class T>
struct ClampBackward {
  T low, high;
  __device__ T operator()(T x, T dout) const { return x >= low && x <= high ? dout : T{0}; }
};
struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

template <class T>
void unary_of(UnaryOp op, const T* x, T* out, int64_t n, cudaStream_t stream) {
  switch (op) {
    case UnaryOp::kNeg:
      return launch_map(stream, n, Neg{}, out, x);
    case UnaryOp::kExp:
      return launch_map(stream, n, Exp{}, out, x);
    case UnaryOp::kLog:
      return launch_map(stream, n, Log{}, out, x);
    case UnaryOp::kSqrt:
      return launch_map(stream, n, Sqrt{}, out, x);
    case UnaryOp::kSquare:
      return launch_map(stream, n, Square{}, out, x);
    case UnaryOp::kReciprocal:
      return launch_map(stream, n, Reciprocal{}, out, x);
    case UnaryOp::kTanh:
      return launch_map(stream, n, Tanh{}, out, x);
    case UnaryOp::kSigmoid:
      return launch_map(stream, n, Sigmoid{}, out, x);
    case UnaryOp::kSilu:
      return launch_map(stream, n, Silu{}, out, x);
    case UnaryOp::kSin:
      return launch_map(stream, n, Sin{}, out, x);
    case UnaryOp::kCos:
      return launch_map(stream, n, Cos{}, out, x);
    case UnaryOp::kAbs:
      return launch_map(stream, n, Abs{}, out, x);
  }
}

}  // namespace

void unary(UnaryOp op, ConstView x, View out, cudaStream_t stream) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    unary_of(op, x.as<T>(), out.as<T>(), x.numel(), stream);
  });
}

void affine(ConstView x, double scale, double shift, View out, cudaStream_t stream) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Affine<T> f{static_cast<T>(scale), static_cast<T>(shift)};
    launch_map(stream, x.numel(), f, out.as<T>(), x.as<T>());
  });
}

void clamp(ConstView x, double low, double high, View out, cudaStream_t stream) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const Clamp<T> f{static_cast<T>(low), static_cast<T>(high)};
    launch_map(stream, x.numel(), f, out.as<T>(), x.as<T>());
  });
}

void clamp_backward(ConstView x, double low, double high, ConstView dout, View dx,
                    cudaStream_t stream) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const ClampBackward<T> f{static_cast<T>(low), static_cast<T>(high)};
    launch_map(stream, x.numel(), f, dx.as<T>(), x.as<T>(), dout.as<T>());
  });
}

void accumulate(ConstView x, View into, cudaStream_t stream) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* old = into.as<T>();
    launch_map(stream, x.numel(), Add{}, into.as<T>(), old, x.as<T>());
  });
}

}  // namespace mutilde::cuda
