// Elementwise kernels. Each is a plain loop that the compiler vectorises; broadcasting is reduced
// to such loops first (broadcast.h).
#include <bit>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/cpu/broadcast.h"
#include "core/cpu/cpu_backend.h"
#include "core/cpu/simd.h"

namespace mutilde {
namespace {

/// out[i] = f(x[i])
template <class In, class Out, class F>
void map(const In* x, Out* out, int64_t n, const F& f) {
  for_elements(n, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = f(x[i]);
  });
}

/// out[i] = f(a[i], b[i])
template <class T, class F>
void map(const T* a, const T* b, T* out, int64_t n, const F& f) {
  for_elements(n, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = f(a[i], b[i]);
  });
}

/// out[i] = f(x...[i]) with f of whole vectors: for what needs an exponential, which no compiler
/// vectorises by itself.
template <class T, class F, class... In>
void map_vectors(T* out, int64_t n, const F& f, const In*... x) {
  constexpr int64_t kStep = simd::kLanes<T>;
  for_elements(n, [=](int64_t begin, int64_t end) {
    int64_t i = begin;
    for (; i + kStep <= end; i += kStep) simd::store(out + i, f(simd::load(x + i)...));
    const int64_t rest = end - i;
    if (rest > 0) {
      simd::store_partial(out + i, f(simd::load_partial(x + i, rest)...), rest);
    }
  });
}

// Conversions between dtypes.

float from_float16(Float16 value) {
  const uint32_t sign = (value.bits & 0x8000U) << 16, exponent = value.bits >> 10 & 0x1fU;
  const uint32_t fraction = value.bits & 0x3ffU;
  if (exponent == 0) {  // zero or subnormal: a multiple of 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24F;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t exponent32 = exponent == 31 ? 255U : exponent + 112U;  // the biases are 15 and 127
  return std::bit_cast<float>(sign | exponent32 << 23 | fraction << 13);
}

template <class From>
auto load(From value) {
  if constexpr (std::is_same_v<From, BFloat16>) {
    return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
  } else if constexpr (std::is_same_v<From, Float16>) {
    return from_float16(value);
  } else {
    return value;
  }
}

/// Round to nearest, ties to even: adding just under half of the last kept bit carries exactly when
/// it must. A NaN keeps its sign and gets a payload that survives the cut.
BFloat16 to_bfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40;
  return {static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded)};
}

/// Likewise, with 13 bits to lose. Numbers from 65520 on, half way to where the next one would be, become infinity.
Float16 to_float16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7fffffff;
  const auto with_sign = [&](uint32_t rest) -> Float16 {
    return {static_cast<uint16_t>((bits >> 16 & 0x8000U) | rest)};
  };
  if (magnitude > 0x7f800000) return with_sign(0x7e00U | (magnitude >> 13 & 0x1ffU));  // NaN
  if (magnitude >= std::bit_cast<uint32_t>(65520.0F)) return with_sign(0x7c00);
  if (magnitude < std::bit_cast<uint32_t>(0x1p-14F)) {
    // Subnormal. Floats from 1/2 on are 2^-24 apart, as these are: so the addition rounds.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return with_sign(std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(0.5F));
  }
  const uint32_t rounded = (magnitude + 0xfff + (magnitude >> 13 & 1)) >> 13;
  return with_sign(rounded - (112U << 10));
}

/// Floating to integer truncates, saturates at the ends of the integer's range and maps NaN to 0.
template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, BFloat16>) {
    return to_bfloat16(static_cast<float>(value));
  } else if constexpr (std::is_same_v<To, Float16>) {
    return to_float16(static_cast<float>(value));
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    using Limits = std::numeric_limits<To>;
    if constexpr (std::is_unsigned_v<To>) {  // without a branch: images go through here
      constexpr From kLow = Limits::min(), kHigh = Limits::max();
      const From above = value > kLow ? value : kLow;  // a NaN becomes kLow
      return static_cast<To>(static_cast<int32_t>(above < kHigh ? above : kHigh));
    }
    // The upper end may round up to a power of two as a From; all below it is in range.
    if (value <= static_cast<From>(Limits::min())) return Limits::min();
    if (value >= static_cast<From>(Limits::max())) return Limits::max();
    return value == value ? static_cast<To>(value) : To{0};
  } else {
    return static_cast<To>(value);
  }
}

/// Calls f(T{}) with the element type of any dtype.
template <class F>
void for_any(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat64:
      return f(double{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat16:
      return f(Float16{});
    case DType::kInt32:
      return f(int32_t{});
    case DType::kInt64:
      return f(int64_t{});
    case DType::kUInt8:
      return f(uint8_t{});
  }
}

/// out = f(a, b), broadcast.
template <class T, class Out, class F>
void binary_map(const ConstView& a, const ConstView& b, const View& out, const F& f) {
  const Broadcast<2> broadcast({a.shape, b.shape}, out.shape);
  broadcast.for_rows([&](const auto& offset, int64_t out_offset, int64_t count) {
    const T* a_row = a.as<T>() + offset[0];
    const T* b_row = b.as<T>() + offset[1];
    Out* out_row = out.as<Out>() + out_offset;
    with_constant(broadcast.strides[0][0], [&](auto stride_a) {
      with_constant(broadcast.strides[0][1], [&](auto stride_b) {
        for (int64_t i = 0; i < count; ++i)
          out_row[i] = f(a_row[i * stride_a], b_row[i * stride_b]);
      });
    });
  });
}

/// out = condition ? a : b, broadcast.
template <class T>
void where_map(const ConstView& condition, const ConstView& a, const ConstView& b,
               const View& out) {
  const Broadcast<3> broadcast({condition.shape, a.shape, b.shape}, out.shape);
  const auto& inner = broadcast.strides[0];
  broadcast.for_rows([&](const auto& offset, int64_t out_offset, int64_t count) {
    const uint8_t* condition_row = condition.as<uint8_t>() + offset[0];
    const T* a_row = a.as<T>() + offset[1];
    const T* b_row = b.as<T>() + offset[2];
    T* out_row = out.as<T>() + out_offset;
    if (inner[0] == 0) {  // one choice for the whole row, as for a mask over the batch
      const bool first = *condition_row != 0;
      const T* chosen = first ? a_row : b_row;
      with_constant(inner[first ? 1 : 2], [&](auto stride) {
        for (int64_t i = 0; i < count; ++i) out_row[i] = chosen[i * stride];
      });
      return;
    }
    with_constant(inner[1], [&](auto stride_a) {
      with_constant(inner[2], [&](auto stride_b) {
        for (int64_t i = 0; i < count; ++i) {
          const T u = a_row[i * stride_a], v = b_row[i * stride_b];
          out_row[i] = condition_row[i] != 0 ? u : v;
        }
      });
    });
  });
}

}  // namespace

void CpuBackend::fill(double value, View out) {
  for_any(out.dtype, [&](auto zero) {
    using T = decltype(zero);
    const T element = convert<T>(value);
    for_elements(out.numel(), [&](int64_t begin, int64_t end) {
      std::fill(out.as<T>() + begin, out.as<T>() + end, element);
    });
  });
}

void CpuBackend::cast(ConstView x, View out) {
  for_any(x.dtype, [&](auto from) {
    for_any(out.dtype, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      map(x.as<From>(), out.as<To>(), x.numel(),
          [](From value) { return convert<To>(load(value)); });
    });
  });
}

void CpuBackend::unary(UnaryOp op, ConstView x, View out) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    using V = simd::Vec<T>;
    const auto apply = [&](const auto& f) { map(x.as<T>(), out.as<T>(), x.numel(), f); };
    const auto apply_vectors = [&](const auto& f) {
      map_vectors(out.as<T>(), x.numel(), f, x.as<T>());
    };
    switch (op) {
      case UnaryOp::kNeg:
        return apply([](T v) { return -v; });
      case UnaryOp::kExp:
        return apply_vectors([](V v) { return simd::exp(v); });
      case UnaryOp::kLog:
        return apply([](T v) { return std::log(v); });
      case UnaryOp::kSqrt:
        return apply([](T v) { return std::sqrt(v); });
      case UnaryOp::kSquare:
        return apply([](T v) { return v * v; });
      case UnaryOp::kReciprocal:
        return apply([](T v) { return T{1} / v; });
      case UnaryOp::kTanh:
        return apply([](T v) { return std::tanh(v); });
      case UnaryOp::kSigmoid:
        return apply_vectors([](V v) { return simd::sigmoid(v); });
      case UnaryOp::kSilu:
        return apply_vectors([](V v) { return v * simd::sigmoid(v); });
      case UnaryOp::kSin:
        return apply([](T v) { return std::sin(v); });
      case UnaryOp::kCos:
        return apply([](T v) { return std::cos(v); });
      case UnaryOp::kAbs:
        return apply([](T v) { return std::abs(v); });
    }
  });
}

void CpuBackend::unary_backward(UnaryOp op, ConstView x, ConstView y, ConstView dout, View dx) {
  // The data of an empty tensor is null too.
  const auto require_saved = [&](const char* name, const ConstView& view) {
    if (view || dx.numel() == 0) return;
    fail<Error>("unary_backward: UnaryOp {} needs {}, which was not saved (Saves, core/ops)",
                static_cast<int>(op), name);
  };
  for_float(dout.dtype, [&](auto zero) {
    using T = decltype(zero);
    // Whichever of x and y has the shorter formula.
    const auto from_x = [&](const auto& f) {
      require_saved("x", x);
      map(x.as<T>(), dout.as<T>(), dx.as<T>(), dx.numel(), f);
    };
    const auto from_y = [&](const auto& f) {
      require_saved("y", y);
      map(y.as<T>(), dout.as<T>(), dx.as<T>(), dx.numel(), f);
    };
    switch (op) {
      case UnaryOp::kNeg:
        return map(dout.as<T>(), dx.as<T>(), dx.numel(), [](T d) { return -d; });
      case UnaryOp::kExp:
        return from_y([](T v, T d) { return v * d; });
      case UnaryOp::kLog:
        return from_x([](T v, T d) { return d / v; });
      case UnaryOp::kSqrt:
        return from_y([](T v, T d) { return T{0.5} * d / v; });
      case UnaryOp::kSquare:
        return from_x([](T v, T d) { return T{2} * v * d; });
      case UnaryOp::kReciprocal:
        return from_y([](T v, T d) { return -v * v * d; });
      case UnaryOp::kTanh:
        return from_y([](T v, T d) { return (T{1} - v * v) * d; });
      case UnaryOp::kSigmoid:
        return from_y([](T v, T d) { return v * (T{1} - v) * d; });
      case UnaryOp::kSilu: {
        using V = simd::Vec<T>;
        const auto f = [](V v, V d) {
          const V s = simd::sigmoid(v);
          return d * s * (1 + v * (1 - s));
        };
        require_saved("x", x);
        return map_vectors(dx.as<T>(), dx.numel(), f, x.as<T>(), dout.as<T>());
      }
      case UnaryOp::kSin:
        return from_x([](T v, T d) { return std::cos(v) * d; });
      case UnaryOp::kCos:
        return from_x([](T v, T d) { return -std::sin(v) * d; });
      case UnaryOp::kAbs:
        return from_x([](T v, T d) { return v > T{0} ? d : (v < T{0} ? -d : T{0}); });
    }
  });
}

void CpuBackend::affine(ConstView x, double scale, double shift, View out) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    map(x.as<T>(), out.as<T>(), x.numel(),
        [a = static_cast<T>(scale), b = static_cast<T>(shift)](T v) { return v * a + b; });
  });
}

void CpuBackend::clamp(ConstView x, double low, double high, View out) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    map(x.as<T>(), out.as<T>(), x.numel(),
        [a = static_cast<T>(low), b = static_cast<T>(high)](T v) {
          return v < a ? a : (v > b ? b : v);  // a NaN stays one
        });
  });
}

void CpuBackend::clamp_backward(ConstView x, double low, double high, ConstView dout, View dx) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    map(x.as<T>(), dout.as<T>(), dx.as<T>(), x.numel(),
        [a = static_cast<T>(low), b = static_cast<T>(high)](T v, T d) {
          return v >= a && v <= b ? d : T{0};
        });
  });
}

void CpuBackend::binary(BinaryOp op, ConstView a, ConstView b, View out) {
  for_float(a.dtype, [&](auto zero) {
    using T = decltype(zero);
    switch (op) {
      case BinaryOp::kAdd:
        return binary_map<T, T>(a, b, out, [](T u, T v) { return u + v; });
      case BinaryOp::kSub:
        return binary_map<T, T>(a, b, out, [](T u, T v) { return u - v; });
      case BinaryOp::kMul:
        return binary_map<T, T>(a, b, out, [](T u, T v) { return u * v; });
      case BinaryOp::kDiv:
        return binary_map<T, T>(a, b, out, [](T u, T v) { return u / v; });
      case BinaryOp::kLess:
        return binary_map<T, uint8_t>(a, b, out, [](T u, T v) { return u < v ? 1 : 0; });
      case BinaryOp::kGreaterEqual:
        return binary_map<T, uint8_t>(a, b, out, [](T u, T v) { return u >= v ? 1 : 0; });
    }
  });
}

void CpuBackend::where(ConstView condition, ConstView a, ConstView b, View out) {
  const auto choose = [&](auto zero) { where_map<decltype(zero)>(condition, a, b, out); };
  switch (size_of(out.dtype)) {  // elements are only moved
    case 1:
      return choose(uint8_t{});
    case 2:
      return choose(uint16_t{});
    case 4:
      return choose(uint32_t{});
    default:
      return choose(uint64_t{});
  }
}

void CpuBackend::accumulate(ConstView x, View into) {
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    map(x.as<T>(), into.as<T>(), into.as<T>(), x.numel(), [](T v, T sum) { return sum + v; });
  });
}

}  // namespace mutilde
