#include "core/cpu/plain.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace mutilde {
namespace {

/// Calls f(output index, weight index, input index) for every product in a convolution.
template <class F>
void for_each_product(const PlainConv& s, const F& f) {
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t h_out = 0; h_out < s.H_out(); ++h_out)
      for (int64_t w_out = 0; w_out < s.W_out(); ++w_out)
        for (int64_t kh = 0; kh < s.kH; ++kh)
          for (int64_t kw = 0; kw < s.kW; ++kw) {
            const int64_t h = h_out * s.stride - s.padding + kh,
                          w = w_out * s.stride - s.padding + kw;
            if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;
            for (int64_t c_out = 0; c_out < s.C_out; ++c_out)
              for (int64_t c = 0; c < s.C; ++c)
                f(((n * s.H_out() + h_out) * s.W_out() + w_out) * s.C_out + c_out,
                  ((c_out * s.kH + kh) * s.kW + kw) * s.C + c, ((n * s.H + h) * s.W + w) * s.C + c);
          }
}

double silu(double u) { return u / (1 + std::exp(-u)); }

double silu_derivative(double u) {
  const double sigmoid = 1 / (1 + std::exp(-u));
  return sigmoid * (1 + u * (1 - sigmoid));
}

}  // namespace

template <class T>
void plain_matmul(int64_t M, int64_t N, int64_t K, const T* a, bool transpose_a, const T* b,
                  bool transpose_b, T* out) {
  for (int64_t m = 0; m < M; ++m)
    for (int64_t n = 0; n < N; ++n) {
      T sum = 0;
      for (int64_t k = 0; k < K; ++k)
        sum += (transpose_a ? a[k * M + m] : a[m * K + k]) *
               (transpose_b ? b[n * K + k] : b[k * N + n]);
      out[m * N + n] = sum;
    }
}

template <class T>
void plain_conv2d(const PlainConv& s, const T* x, const T* weight, const T* bias, T* out) {
  for (int64_t i = 0; i < s.N * s.H_out() * s.W_out() * s.C_out; ++i)
    out[i] = bias != nullptr ? bias[i % s.C_out] : T(0);
  for_each_product(s, [&](int64_t o, int64_t k, int64_t i) { out[o] += weight[k] * x[i]; });
}

template <class T>
void plain_conv2d_backward_input(const PlainConv& s, const T* dout, const T* weight, T* dx) {
  std::fill_n(dx, s.N * s.H * s.W * s.C, T(0));
  for_each_product(s, [&](int64_t o, int64_t k, int64_t i) { dx[i] += weight[k] * dout[o]; });
}

template <class T>
void plain_conv2d_backward_weight(const PlainConv& s, const T* x, const T* dout, T* dweight) {
  std::fill_n(dweight, s.C_out * s.kH * s.kW * s.C, T(0));
  for_each_product(s, [&](int64_t o, int64_t k, int64_t i) { dweight[k] += x[i] * dout[o]; });
}

// With g the group of channel c:
//   z = (x - mean_g) * rstd_g
//   v = z * weight_c + bias_c
//   u = v * (1 + scale_c) + shift_c
//   out = silu(u)
template <class T>
void plain_group_norm(const PlainNorm& s, const T* x, const T* weight, const T* bias,
                      const T* scale_shift, T* out, T* mean, T* rstd) {
  const int64_t G = s.C / s.groups;
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t g = 0; g < s.groups; ++g) {
      const auto at = [&](int64_t p, int64_t c) { return (n * s.P + p) * s.C + g * G + c; };
      const double count = static_cast<double>(s.P * G);
      double sum = 0, square_sum = 0;
      for (int64_t p = 0; p < s.P; ++p)
        for (int64_t c = 0; c < G; ++c) sum += x[at(p, c)];
      const double mu = sum / count;
      for (int64_t p = 0; p < s.P; ++p)
        for (int64_t c = 0; c < G; ++c) square_sum += (x[at(p, c)] - mu) * (x[at(p, c)] - mu);
      const double r = 1 / std::sqrt(square_sum / count + s.norm_eps);
      mean[n * s.groups + g] = static_cast<T>(mu);
      rstd[n * s.groups + g] = static_cast<T>(r);
      for (int64_t p = 0; p < s.P; ++p)
        for (int64_t c = 0; c < G; ++c) {
          const int64_t channel = g * G + c;
          double u = (x[at(p, c)] - mu) * r * weight[channel] + bias[channel];
          if (scale_shift != nullptr) {
            const T* row = scale_shift + n * 2 * s.C;
            u = u * (1 + row[channel]) + row[s.C + channel];
          }
          out[at(p, c)] = static_cast<T>(s.silu ? silu(u) : u);
        }
    }
}

// The same names, differentiated from the end:
//   du = dout * silu'(u)
//   dscale = sum du * v,  dshift = sum du,  dv = du * (1 + scale)
//   dweight = sum dv * z,  dbias = sum dv,  dz = dv * weight
//   dx = rstd * (dz - mean over the group of dz - z * mean over the group of dz * z)
template <class T>
void plain_group_norm_backward(const PlainNorm& s, const T* x, const T* weight, const T* bias,
                               const T* scale_shift, const T* mean, const T* rstd, const T* dout,
                               T* dx, T* dweight, T* dbias, T* dscale_shift) {
  const int64_t G = s.C / s.groups;
  std::vector<double> weight_sum(static_cast<size_t>(s.C)), bias_sum(static_cast<size_t>(s.C));
  for (int64_t n = 0; n < s.N; ++n)
    for (int64_t g = 0; g < s.groups; ++g) {
      const double mu = mean[n * s.groups + g], r = rstd[n * s.groups + g];
      double dz_sum = 0, dz_z_sum = 0;
      for (int pass = 0; pass < 2; ++pass)
        for (int64_t c = g * G; c < (g + 1) * G; ++c) {
          const double scale = scale_shift != nullptr ? 1 + scale_shift[n * 2 * s.C + c] : 1;
          const double shift = scale_shift != nullptr ? scale_shift[n * 2 * s.C + s.C + c] : 0;
          double dscale = 0, dshift = 0;
          for (int64_t p = 0; p < s.P; ++p) {
            const int64_t i = (n * s.P + p) * s.C + c;
            const double z = (x[i] - mu) * r, v = z * weight[c] + bias[c], u = v * scale + shift;
            const double du = s.silu ? dout[i] * silu_derivative(u) : dout[i];
            const double dv = du * scale, dz = dv * weight[c];
            if (pass == 0) {
              dz_sum += dz;
              dz_z_sum += dz * z;
              dscale += du * v;
              dshift += du;
              weight_sum[static_cast<size_t>(c)] += dv * z;
              bias_sum[static_cast<size_t>(c)] += dv;
            } else {
              const double count = static_cast<double>(s.P * G);
              dx[i] = static_cast<T>(r * (dz - dz_sum / count - z * dz_z_sum / count));
            }
          }
          if (pass == 0 && scale_shift != nullptr) {
            dscale_shift[n * 2 * s.C + c] = static_cast<T>(dscale);
            dscale_shift[n * 2 * s.C + s.C + c] = static_cast<T>(dshift);
          }
        }
    }
  for (int64_t c = 0; c < s.C; ++c) {
    dweight[c] = static_cast<T>(weight_sum[static_cast<size_t>(c)]);
    dbias[c] = static_cast<T>(bias_sum[static_cast<size_t>(c)]);
  }
}

template <class T>
void plain_softmax(int64_t rows, int64_t columns, const T* x, T* out) {
  for (int64_t i = 0; i < rows; ++i, x += columns, out += columns) {
    const T highest = columns > 0 ? *std::max_element(x, x + columns) : T(0);
    T sum = 0;
    for (int64_t j = 0; j < columns; ++j) sum += out[j] = std::exp(x[j] - highest);
    for (int64_t j = 0; j < columns; ++j) out[j] /= sum;
  }
}

// dx = y * (dout - sum over the row of y * dout)
template <class T>
void plain_softmax_backward(int64_t rows, int64_t columns, const T* y, const T* dout, T* dx) {
  for (int64_t i = 0; i < rows; ++i, y += columns, dout += columns, dx += columns) {
    T sum = 0;
    for (int64_t j = 0; j < columns; ++j) sum += y[j] * dout[j];
    for (int64_t j = 0; j < columns; ++j) dx[j] = y[j] * (dout[j] - sum);
  }
}

namespace {

/// The T x T weights of one head: softmax(q k^T / sqrt(D)) by rows, and the
/// logarithm of each row's sum.
template <class T>
std::vector<T> attention_weights(int64_t positions, int64_t D, int64_t pitch, const T* q,
                                 const T* k, T* log_sum_exp) {
  std::vector<T> weights(static_cast<size_t>(positions * positions));
  const T scale = 1 / std::sqrt(static_cast<T>(D));
  for (int64_t t = 0; t < positions; ++t) {
    T* row = weights.data() + t * positions;
    for (int64_t j = 0; j < positions; ++j) {
      T dot = 0;
      for (int64_t d = 0; d < D; ++d) dot += q[t * pitch + d] * k[j * pitch + d];
      row[j] = dot * scale;
    }
    const T highest = *std::max_element(row, row + positions);
    T sum = 0;
    for (int64_t j = 0; j < positions; ++j) sum += row[j] = std::exp(row[j] - highest);
    for (int64_t j = 0; j < positions; ++j) row[j] /= sum;
    if (log_sum_exp != nullptr) log_sum_exp[t] = highest + std::log(sum);
  }
  return weights;
}

}  // namespace

template <class T>
void plain_attention(int64_t N, int64_t positions, int64_t heads, int64_t D, const T* qkv, T* out,
                     T* log_sum_exp) {
  const int64_t pitch = heads * 3 * D;
  for (int64_t n = 0; n < N; ++n)
    for (int64_t head = 0; head < heads; ++head) {
      const T* q = qkv + n * positions * pitch + head * 3 * D;
      const T* v = q + 2 * D;
      const std::vector<T> weights = attention_weights(
          positions, D, pitch, q, q + D, log_sum_exp + (n * heads + head) * positions);
      for (int64_t t = 0; t < positions; ++t)
        for (int64_t d = 0; d < D; ++d) {
          T sum = 0;
          for (int64_t j = 0; j < positions; ++j)
            sum += weights[static_cast<size_t>(t * positions + j)] * v[j * pitch + d];
          out[((n * positions + t) * heads + head) * D + d] = sum;
        }
    }
}

// With A the weights and S the logits q k^T / sqrt(D):
//   dv = A^T dout
//   dA = dout v^T
//   dS = A * (dA - row sums of A * dA)
//   dq = dS k / sqrt(D)
//   dk = dS^T q / sqrt(D)
template <class T>
void plain_attention_backward(int64_t N, int64_t positions, int64_t heads, int64_t D, const T* qkv,
                              const T* dout, T* dqkv) {
  const int64_t pitch = heads * 3 * D;
  const T scale = 1 / std::sqrt(static_cast<T>(D));
  std::fill_n(dqkv, N * positions * pitch, T(0));
  std::vector<T> da(static_cast<size_t>(positions)), ds(static_cast<size_t>(positions));
  for (int64_t n = 0; n < N; ++n)
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t at = n * positions * pitch + head * 3 * D;
      const T *q = qkv + at, *k = q + D, *v = k + D;
      T *dq = dqkv + at, *dk = dq + D, *dv = dk + D;
      const std::vector<T> weights =
          attention_weights<T>(positions, D, pitch, q, k, static_cast<T*>(nullptr));
      for (int64_t t = 0; t < positions; ++t) {
        const T* dout_t = dout + ((n * positions + t) * heads + head) * D;
        const T* weight = weights.data() + t * positions;
        for (int64_t j = 0; j < positions; ++j) {
          T dot = 0;
          for (int64_t d = 0; d < D; ++d) dot += dout_t[d] * v[j * pitch + d];
          da[static_cast<size_t>(j)] = dot;
        }
        plain_softmax_backward(1, positions, weight, da.data(), ds.data());
        for (int64_t j = 0; j < positions; ++j)
          for (int64_t d = 0; d < D; ++d) {
            const T s = ds[static_cast<size_t>(j)] * scale;
            dq[t * pitch + d] += s * k[j * pitch + d];
            dk[j * pitch + d] += s * q[t * pitch + d];
            dv[j * pitch + d] += weight[j] * dout_t[d];
          }
      }
    }
}

template void plain_matmul(int64_t, int64_t, int64_t, const float*, bool, const float*, bool,
                           float*);
template void plain_conv2d(const PlainConv&, const float*, const float*, const float*, float*);
template void plain_conv2d_backward_input(const PlainConv&, const float*, const float*, float*);
template void plain_conv2d_backward_weight(const PlainConv&, const float*, const float*, float*);
template void plain_group_norm(const PlainNorm&, const float*, const float*, const float*,
                               const float*, float*, float*, float*);
template void plain_group_norm_backward(const PlainNorm&, const float*, const float*, const float*,
                                        const float*, const float*, const float*, const float*,
                                        float*, float*, float*, float*);
template void plain_softmax(int64_t, int64_t, const float*, float*);
template void plain_softmax_backward(int64_t, int64_t, const float*, const float*, float*);
template void plain_attention(int64_t, int64_t, int64_t, int64_t, const float*, float*, float*);
template void plain_attention_backward(int64_t, int64_t, int64_t, int64_t, const float*,
                                       const float*, float*);
template void plain_matmul(int64_t, int64_t, int64_t, const double*, bool, const double*, bool,
                           double*);
template void plain_conv2d(const PlainConv&, const double*, const double*, const double*, double*);
template void plain_conv2d_backward_input(const PlainConv&, const double*, const double*, double*);
template void plain_conv2d_backward_weight(const PlainConv&, const double*, const double*, double*);
template void plain_group_norm(const PlainNorm&, const double*, const double*, const double*,
                               const double*, double*, double*, double*);
template void plain_group_norm_backward(const PlainNorm&, const double*, const double*,
                                        const double*, const double*, const double*, const double*,
                                        const double*, double*, double*, double*, double*);
template void plain_softmax(int64_t, int64_t, const double*, double*);
template void plain_softmax_backward(int64_t, int64_t, const double*, const double*, double*);
template void plain_attention(int64_t, int64_t, int64_t, int64_t, const double*, double*, double*);
template void plain_attention_backward(int64_t, int64_t, int64_t, int64_t, const double*,
                                       const double*, double*);

}  // namespace mutilde
