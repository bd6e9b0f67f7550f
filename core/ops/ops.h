// Every op, by family. Each is differentiable in its floating inputs unless a comment says
// otherwise; its forward and backward stand side by side in the family's file.
//
// Shapes that do not fit throw ShapeError, dtypes that do not fit DTypeError; the message names the
// op. All floating inputs of an op share one dtype and one device.
#pragma once

#include <optional>
#include <vector>

#include "core/autograd.h"
#include "core/random.h"
#include "core/tensor.h"

namespace mutilde {

// Elementwise (elementwise.cpp). Binary ops broadcast, aligned at the last axis.
Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, const Tensor& b);
Tensor affine(const Tensor& x, double scale, double shift);  // x * scale + shift
inline Tensor operator+(const Tensor& a, const Tensor& b) { return add(a, b); }
inline Tensor operator-(const Tensor& a, const Tensor& b) { return sub(a, b); }
inline Tensor operator*(const Tensor& a, const Tensor& b) { return mul(a, b); }
inline Tensor operator/(const Tensor& a, const Tensor& b) { return div(a, b); }
inline Tensor operator+(const Tensor& x, double s) { return affine(x, 1, s); }
inline Tensor operator+(double s, const Tensor& x) { return affine(x, 1, s); }
inline Tensor operator-(const Tensor& x, double s) { return affine(x, 1, -s); }
inline Tensor operator-(double s, const Tensor& x) { return affine(x, -1, s); }
inline Tensor operator*(const Tensor& x, double s) { return affine(x, s, 0); }
inline Tensor operator*(double s, const Tensor& x) { return affine(x, s, 0); }
inline Tensor operator/(const Tensor& x, double s) { return affine(x, 1 / s, 0); }
Tensor operator/(double s, const Tensor& x);
Tensor operator-(const Tensor& x);
Tensor exp(const Tensor& x);
Tensor log(const Tensor& x);
Tensor sqrt(const Tensor& x);
Tensor square(const Tensor& x);
Tensor reciprocal(const Tensor& x);
Tensor abs(const Tensor& x);  // derivative 0 at 0
Tensor sin(const Tensor& x);
Tensor cos(const Tensor& x);
Tensor tanh(const Tensor& x);
Tensor sigmoid(const Tensor& x);
Tensor silu(const Tensor& x);  // x * sigmoid(x)
/// Gradient 1 inside and on the borders, 0 outside. Throws if low > high.
Tensor clamp(const Tensor& x, double low, double high);
/// condition: uint8; all three broadcast.
Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b);
Tensor less(const Tensor& a, const Tensor& b);           // uint8; not differentiable
Tensor greater_equal(const Tensor& a, const Tensor& b);  // uint8; not differentiable
/// Each element is kept with probability 1 - p and then scaled by 1 / (1 - p).
/// Throws for p outside [0, 1).
Tensor dropout(const Tensor& x, double p, RandomPosition position);

// Reductions (reduce.cpp). Empty `axes` means all. Reduced axes vanish unless keep_axes.
Tensor sum(const Tensor& x, const std::vector<int>& axes = {}, bool keep_axes = false);
/// Throws for an empty axis.
Tensor mean(const Tensor& x, const std::vector<int>& axes = {}, bool keep_axes = false);
/// The gradient is shared evenly by all elements that attain the maximum. Throws for an empty axis.
Tensor max(const Tensor& x, const std::vector<int>& axes = {}, bool keep_axes = false);
/// Mean over every axis but the first: [N, ...] -> [N].
Tensor mean_flat(const Tensor& x);
/// mean((a - b)^2), a scalar; a and b have one shape.
Tensor mean_squared_error(const Tensor& a, const Tensor& b);

// Layout (layout.cpp).
Tensor permute(const Tensor& x, const std::vector<int>& axes);
/// Joins along the last axis (channels); the other axes agree.
Tensor concat(const std::vector<Tensor>& parts);
/// Channels [begin, end) of the last axis.
Tensor slice_channels(const Tensor& x, int64_t begin, int64_t end);
/// The last axis in `parts` equal parts. Throws ShapeError if it does not divide.
std::vector<Tensor> split(const Tensor& x, int64_t parts);
Tensor cast(const Tensor& x, DType dtype);  // differentiable between floating dtypes
Tensor broadcast_to(const Tensor& x, const Shape& shape);

// Matrix products (matmul.cpp).
/// [.., M, K] x [.., K, N] -> [.., M, N]; transposed sides are [.., K, M] and [.., N, K]. The
/// leading axes agree, or one side has none.
Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a = false, bool transpose_b = false);
/// x: [.., K], weight: [N, K], bias: [N] or undefined -> [.., N]. A residual, of that shape, is added.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias,
              const Tensor& residual = {});

// Convolution (conv.cpp).
/// x: [N, H, W, C], weight: [C_out, kH, kW, C], bias: [C_out] or undefined
/// -> [N, (H + 2p - kH) / s + 1, (W + 2p - kW) / s + 1, C_out]. A residual, of that shape, is added.
Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t stride = 1,
              int64_t padding = 0, const Tensor& residual = {});

// Normalisation (norm.cpp).
/// x: [N, .., C]; each of `groups` groups of channels is normalised over all
/// positions (biased variance, computed in two passes); weight, bias: [C].
/// Throws ShapeError if groups does not divide C.
Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                  double norm_eps = 1e-5);
/// Defined by: silu(group_norm(x) * (1 + scale) + shift), where scale_shift: [N, 2C] is scale and
/// then shift for each channel, or undefined for plain silu(group_norm(x)).
Tensor group_norm_silu(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                       const Tensor& scale_shift, double norm_eps = 1e-5);
Tensor softmax(const Tensor& x);  // over the last axis

// Attention (attention.cpp).
/// qkv: [N, T, heads * 3 * D], laid out head by head (for each its q, then k, then v)
/// -> [N, T, heads * D]. Defined by: softmax((q D^-1/4) (k D^-1/4)^T) v for each head.
/// Never holds the T x T weights.
Tensor attention(const Tensor& qkv, int64_t heads);

// Resampling (resample.cpp), [N, H, W, C].
Tensor upsample_nearest(const Tensor& x, int64_t factor);
/// Mean of factor x factor blocks. Throws ShapeError if H or W does not divide.
Tensor avg_pool2d(const Tensor& x, int64_t factor);
/// Bilinear, half-pixel centres, edges clamped.
Tensor resize_bilinear(const Tensor& x, int64_t height, int64_t width);

// Tables (embedding.cpp).
/// weight: [V, E], index: int64 of any shape -> [.., E]. Throws Error for an index outside [0, V);
/// on another device than the CPU, where that would make the host wait, the row is NaN instead.
Tensor embedding(const Tensor& weight, const Tensor& index);
/// table: [T] float64; t: [N] int64. Entry t of a per-timestep table for each image, as float32 or
/// float64, shaped [N, 1, .., 1] with `rank` axes so that it broadcasts over a batch. Not
/// differentiable.
Tensor gather_timesteps(const Tensor& table, const Tensor& t, int rank,
                        DType dtype = DType::kFloat32);

}  // namespace mutilde
