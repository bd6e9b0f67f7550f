// Rows of tables. Nobody has checked the indices: see core/backend.h.
#include <cmath>

#include "cuda/cuda_backend.h"
#include "cuda/parallel.h"

namespace mutilde::cuda {
namespace {

template <class T>
struct Lookup {
  const T* weight;  // [V, E]
  const int64_t* index;
  T* out;  // [n, E]
  int64_t V, E;
  __device__ void operator()(int64_t i) const {
    const int64_t row = index[i / E];
    out[i] = row >= 0 && row < V ? weight[row * E + i % E] : T(NAN);
  }
};

/// A thread an element of dweight, which looks through all indices for its row: they are few, all
/// threads read the same ones, and each sum runs in the order of the indices.
template <class T>
struct LookupBackward {
  const T* dout;
  const int64_t* index;
  T* dweight;
  int64_t n, E;
  __device__ void operator()(int64_t i) const {
    const int64_t row = i / E, e = i % E;
    T sum = 0;
    for (int64_t j = 0; j < n; ++j) {
      if (index[j] == row) sum += dout[j * E + e];
    }
    dweight[i] = sum;
  }
};

}  // namespace

void CudaBackend::embedding(ConstView weight, ConstView index, View out) {
  for_float(weight.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_for_each(out.numel(), Lookup<T>{weight.as<T>(), index.as<int64_t>(), out.as<T>(),
                                           weight.shape[0], weight.shape[1]});
  });
}

void CudaBackend::embedding_backward(ConstView dout, ConstView index, View dweight) {
  for_float(dout.dtype, [&](auto zero) {
    using T = decltype(zero);
    launch_for_each(dweight.numel(),
                    LookupBackward<T>{dout.as<T>(), index.as<int64_t>(), dweight.as<T>(),
                                      index.numel(), dweight.shape[1]});
  });
}

}  // namespace mutilde::cuda
