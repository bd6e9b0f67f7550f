// How products are computed: convolutions, dense layers and matrix products.
#pragma once

namespace mutilde {

/// Parameters are float32 either way (what others call master weights), and so is the arithmetic of norms,
/// softmax and sums.
enum class Precision {
  kFloat32,
  /// A product may round its factors to bfloat16 (8 bits of mantissa); it adds in float32. Each backend
  /// decides where that is the faster way. Where a backend's kernels take them, a UNet's activations are
  /// bfloat16 in memory too (Backend::has_bfloat16_kernels). Each factor is off by at most 2^-8 of itself, a term by 2^-7.
  kBfloat16,
};

/// The precision of products of float32 tensors, of the whole process. float64 is never rounded.
Precision product_precision();
void set_product_precision(Precision precision);

}  // namespace mutilde
