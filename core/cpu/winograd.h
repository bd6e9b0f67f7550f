// Winograd's convolution: 3 x 3 kernels, stride 1, with fewer multiplications.
//
// F(m, 3) computes m outputs of a one-dimensional convolution with 3 taps from m + 2 inputs d with
// m + 2 multiplications in place of 3 m:
//
//   y = A^T [ (G g) * (B^T d) ]          (* elementwise; Lavin and Gray, arXiv:1509.09308, eq. 7)
//
// and, applied to rows and columns, F(m x m, 3 x 3) computes a tile of m x m pixels with (m + 2)^2:
// 4 a pixel for m = 2 and 2.25 for m = 4, where the direct sum takes 9. The products of one
// position of the tile, summed over input channels, are a matrix product, so that a convolution
// becomes
//
//   transform the tiles      U[e] = (B^T d B)[e]             e = 1 .. (m + 2)^2, each tiles x C_in
//   one product a position   M[e] = U[e] W[e]                W[e] = (G g G^T)[e], C_in x C_out
//   transform back           y = A^T M A + bias
//
// The gradients are exact derivatives of these lines: of the input the same with the weight turned
// round, of the weight dg = G^T (sum over tiles of (A dy A^T) (B^T d B)) G.
//
// The transforms add and subtract numbers of different size, so that float32 loses some digits:
// over 128 channels of normal numbers the root mean square error is 2.5 to 5 epsilon for the direct
// sum, 2 to 3.5 for m = 2 (shorter sums) and 11 to 20, about 2e-6, for m = 4 (the float32 test of
// tests/core/winograd_test.cpp prints it).
#pragma once

#include <cstdint>

namespace mutilde {

/// The one-dimensional transforms of F(m, 3), on numbers or vectors of them. Each works on a column
/// of a tile; the adjoint ones are the transposed matrices.
template <int m>
struct WinogradTransform;

template <>
struct WinogradTransform<2> {
  static constexpr int kTile = 4;

  template <class V>  // B^T d
  static void input(const V (&d)[4], V (&u)[4]) {
    u[0] = d[0] - d[2];
    u[1] = d[1] + d[2];
    u[2] = d[2] - d[1];
    u[3] = d[1] - d[3];
  }
  template <class V>  // G g
  static void filter(const V (&g)[3], V (&w)[4]) {
    const V even = (g[0] + g[2]) * 0.5f, odd = g[1] * 0.5f;
    w[0] = g[0];
    w[1] = even + odd;
    w[2] = even - odd;
    w[3] = g[2];
  }
  template <class V>  // A^T m
  static void output(const V (&m)[4], V (&y)[2]) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  template <class V>  // A dy
  static void output_adjoint(const V (&dy)[2], V (&dm)[4]) {
    dm[0] = dy[0];
    dm[1] = dy[0] + dy[1];
    dm[2] = dy[0] - dy[1];
    dm[3] = -dy[1];
  }
  template <class V>  // G^T dw
  static void filter_adjoint(const V (&dw)[4], V (&dg)[3]) {
    const V even = (dw[1] + dw[2]) * 0.5f;
    dg[0] = dw[0] + even;
    dg[1] = (dw[1] - dw[2]) * 0.5f;
    dg[2] = even + dw[3];
  }
};

// Points 0, 1, -1, 2, -2 and infinity.
template <>
struct WinogradTransform<4> {
  static constexpr int kTile = 6;

  template <class V>
  static void input(const V (&d)[6], V (&u)[6]) {
    const V a = d[4] - 4 * d[2], b = d[3] - 4 * d[1], c = d[4] - d[2], e = 2 * (d[3] - d[1]);
    u[0] = 4 * d[0] - 5 * d[2] + d[4];
    u[1] = a + b;
    u[2] = a - b;
    u[3] = c + e;
    u[4] = c - e;
    u[5] = 4 * d[1] - 5 * d[3] + d[5];
  }
  template <class V>
  static void filter(const V (&g)[3], V (&w)[6]) {
    const V sixth = (V{} + 1) / 6, quarter = (V{} + 1) / 4;
    const V even = (g[0] + g[2]) * -sixth, odd = g[1] * -sixth;
    const V far_even = (g[0] * quarter + g[2]) * sixth, far_odd = g[1] * (sixth / 2);
    w[0] = g[0] * quarter;
    w[1] = even + odd;
    w[2] = even - odd;
    w[3] = far_even + far_odd;
    w[4] = far_even - far_odd;
    w[5] = g[2];
  }
  template <class V>
  static void output(const V (&m)[6], V (&y)[4]) {
    const V near_even = m[1] + m[2], near_odd = m[1] - m[2];
    const V far_even = m[3] + m[4], far_odd = m[3] - m[4];
    y[0] = m[0] + near_even + far_even;
    y[1] = near_odd + 2 * far_odd;
    y[2] = near_even + 4 * far_even;
    y[3] = near_odd + 8 * far_odd + m[5];
  }
  template <class V>
  static void output_adjoint(const V (&dy)[4], V (&dm)[6]) {
    const V near_even = dy[0] + dy[2], near_odd = dy[1] + dy[3];
    const V far_even = dy[0] + 4 * dy[2], far_odd = 2 * dy[1] + 8 * dy[3];
    dm[0] = dy[0];
    dm[1] = near_even + near_odd;
    dm[2] = near_even - near_odd;
    dm[3] = far_even + far_odd;
    dm[4] = far_even - far_odd;
    dm[5] = dy[3];
  }
  template <class V>
  static void filter_adjoint(const V (&dw)[6], V (&dg)[3]) {
    const V sixth = (V{} + 1) / 6, quarter = (V{} + 1) / 4;
    const V near_even = (dw[1] + dw[2]) * -sixth, far_even = (dw[3] + dw[4]) * sixth;
    dg[0] = dw[0] * quarter + near_even + far_even * quarter;
    dg[1] = (dw[2] - dw[1]) * sixth + (dw[3] - dw[4]) * (sixth / 2);
    dg[2] = near_even + far_even + dw[5];
  }
};

/// dst[n, h, w, o] = bias[o] + sum over kh, kw, c of
///                   src[n, h + kh - padding, w + kw - padding, c] * weight(kh, kw, c, o)
/// where weight(kh, kw, c, o) stands at kh * kh_stride + kw * kw_stride + c * src_stride
/// + o * dst_stride. The gradient of the input is this too, with negative strides over the taps.
template <class T>
struct Conv3x3 {
  int64_t N, H, W, C_src;       // src: [N, H, W, C_src]
  int64_t H_out, W_out, C_dst;  // dst: [N, H_out, W_out, C_dst]
  int64_t padding;
  const T* src;
  const T* weight;
  int64_t kh_stride, kw_stride, src_stride, dst_stride;
  const T* bias;  // C_dst elements, or null
  T* dst;
};

/// Whether F(4 x 4, 3 x 3) is the faster way, for channels in whole vectors, which it needs. The
/// batch has no say: an image must not change with its company.
template <class T>
bool winograd_pays(int64_t H_out, int64_t W_out, int64_t C_in, int64_t C_out);

/// Channels must be whole vectors.
template <int m, class T>
void winograd_conv(const Conv3x3<T>& conv);

/// The same for dweight[o, kh, kw, c]; x: [N, H, W, C] and dout: [N, H_out, W_out, C_out].
template <int m, class T>
void winograd_weight_gradient(int64_t N, int64_t H, int64_t W, int64_t C, int64_t H_out,
                              int64_t W_out, int64_t C_out, int64_t padding, const T* x,
                              const T* dout, T* dweight);

}  // namespace mutilde
