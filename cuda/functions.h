// What the elementwise kernels do to an element: a struct each, since a kernel's template argument must
// have a name that both compilers can spell, which a lambda has not.
#pragma once

#include <cmath>
#include <cstdint>

#include "cuda/launch.h"

namespace mutilde::cuda {

// Functions of one element.

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

// Derivatives times the incoming gradient d, from x or from y = f(x), whichever is shorter.

struct ExpBackward {
  template <class T>
  __device__ T operator()(T y, T d) const {
    return y * d;
  }
};
struct LogBackward {
  template <class T>
  __device__ T operator()(T x, T d) const {
    return d / x;
  }
};
struct SqrtBackward {
  template <class T>
  __device__ T operator()(T y, T d) const {
    return T{0.5} * d / y;
  }
};
struct SquareBackward {
  template <class T>
  __device__ T operator()(T x, T d) const {
    return T{2} * x * d;
  }
};
struct ReciprocalBackward {
  template <class T>
  __device__ T operator()(T y, T d) const {
    return -y * y * d;
  }
};
struct TanhBackward {
  template <class T>
  __device__ T operator()(T y, T d) const {
    return (T{1} - y * y) * d;
  }
};
struct SigmoidBackward {
  template <class T>
  __device__ T operator()(T y, T d) const {
    return y * (T{1} - y) * d;
  }
};
struct SiluBackward {
  template <class T>
  __device__ T operator()(T x, T d) const {
    const T s = T{1} / (T{1} + std::exp(-x));
    return d * s * (T{1} + x * (T{1} - s));
  }
};
struct SinBackward {
  template <class T>
  __device__ T operator()(T x, T d) const {
    return std::cos(x) * d;
  }
};
struct CosBackward {
  template <class T>
  __device__ T operator()(T x, T d) const {
    return -std::sin(x) * d;
  }
};
struct AbsBackward {
  template <class T>
  __device__ T operator()(T x, T d) const {
    return x > T{0} ? d : (x < T{0} ? -d : T{0});
  }
};

// Functions of two elements.

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Sub {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a - b;
  }
};
struct Mul {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a * b;
  }
};
struct Div {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a / b;
  }
};
struct Less {
  template <class T>
  __device__ uint8_t operator()(T a, T b) const {
    return a < b ? 1 : 0;
  }
};
struct GreaterEqual {
  template <class T>
  __device__ uint8_t operator()(T a, T b) const {
    return a >= b ? 1 : 0;
  }
};

}  // namespace mutilde::cuda
