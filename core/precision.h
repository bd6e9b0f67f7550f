// How products are computed: convolutions, dense layers and matrix products.
#pragma once

#include "core/dtype.h"

namespace mutilde {

/// Parameters are float32 either way (what others call master weights), and so is the arithmetic of norms,
/// softmax and sums.
enum class Precision {
  kFloat32,
  /// A product may round its factors to bfloat16 (8 bits of mantissa); it adds in float32. Each backend
  /// decides where that is the faster way. Where a backend's kernels take them, a UNet's activations are
  /// bfloat16 in memory too (Backend::has_kernels_for). Each factor is off by at most 2^-8 of itself, a term by 2^-7.
  kBfloat16,
  /// The same with float16 (11 bits): a factor is off by at most 2^-11 of itself, if it lies between 2^-14 and
  /// 65504. Larger ones become infinity, so training scales its losses (Trainer::scale_losses) and skips a step
  /// that overflows. The CPU has no kernels for it: its products stay in float32.
  kFloat16,
};

/// The precision of products of float32 tensors, of the whole process. float64 is never rounded.
Precision product_precision();
void set_product_precision(Precision precision);

/// What a product of tensors of this type may round its factors to: the type itself, or for float32 what
/// product_precision() says.
DType factor_dtype(DType dtype);

}  // namespace mutilde
