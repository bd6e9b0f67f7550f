// How products are computed: convolutions, dense layers and matrix products.
#pragma once

namespace mutilde {

/// Tensors hold float32 either way, the weights too (what others call master weights); norms, softmax
/// and sums are float32.
enum class Precision {
  kFloat32,
  /// A product may round its factors to bfloat16 (8 bits of mantissa); it adds in float32. Each backend
  /// decides where that is the faster way. Each factor is off by at most 2^-8 of itself, a term by 2^-7.
  kBfloat16,
};

/// The precision of products of float32 tensors, of the whole process. float64 is never rounded.
Precision product_precision();
void set_product_precision(Precision precision);

}  // namespace mutilde
