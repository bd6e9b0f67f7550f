// The kernels of this folder as their definitions say them: loops over indices, nothing else. Tests
// hold the fast ones equal to these; read these first. float and double.
#pragma once

#include <cstdint>

namespace mutilde {

/// out[m, n] = sum over k of a[m, k] b[k, n]; a: [M, K] ([K, M] if transposed), b: [K, N] ([N, K]).
template <class T>
void plain_matmul(int64_t M, int64_t N, int64_t K, const T* a, bool transpose_a, const T* b,
                  bool transpose_b, T* out);

struct PlainConv {
  int64_t N, H, W, C, C_out, kH, kW, stride, padding;

  int64_t H_out() const { return (H + 2 * padding - kH) / stride + 1; }
  int64_t W_out() const { return (W + 2 * padding - kW) / stride + 1; }
};

/// x: [N, H, W, C], weight: [C_out, kH, kW, C], bias: [C_out] or null,
/// out: [N, H_out, W_out, C_out].
template <class T>
void plain_conv2d(const PlainConv& s, const T* x, const T* weight, const T* bias, T* out);
template <class T>
void plain_conv2d_backward_input(const PlainConv& s, const T* dout, const T* weight, T* dx);
template <class T>
void plain_conv2d_backward_weight(const PlainConv& s, const T* x, const T* dout, T* dweight);

struct PlainNorm {
  int64_t N, P, C, groups;
  double norm_eps;
  bool silu;
};

/// x, out: [N, P, C]; weight, bias: [C]; scale_shift: [N, 2C] or null; mean, rstd: [N, groups].
template <class T>
void plain_group_norm(const PlainNorm& s, const T* x, const T* weight, const T* bias,
                      const T* scale_shift, T* out, T* mean, T* rstd);
/// dscale_shift is null where scale_shift is.
template <class T>
void plain_group_norm_backward(const PlainNorm& s, const T* x, const T* weight, const T* bias,
                               const T* scale_shift, const T* mean, const T* rstd, const T* dout,
                               T* dx, T* dweight, T* dbias, T* dscale_shift);

/// Over the last axis of [rows, columns].
template <class T>
void plain_softmax(int64_t rows, int64_t columns, const T* x, T* out);
template <class T>
void plain_softmax_backward(int64_t rows, int64_t columns, const T* y, const T* dout, T* dx);

/// qkv: [N, T, heads * 3 * D], head by head its q, k and v; out: [N, T, heads * D];
/// log_sum_exp: [N, heads, T].
template <class T>
void plain_attention(int64_t N, int64_t positions, int64_t heads, int64_t D, const T* qkv, T* out,
                     T* log_sum_exp);
template <class T>
void plain_attention_backward(int64_t N, int64_t positions, int64_t heads, int64_t D, const T* qkv,
                              const T* dout, T* dqkv);

}  // namespace mutilde
