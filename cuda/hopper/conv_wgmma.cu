// Rung 4 of the convolution (conv_plain.cu has 1, product_tiled.h and product_wmma.h 2 and 3): Hopper's
// copy engine and wgmma. wgmma.h tells what is gained and why, and has all but which tiles are copied.
//
// The rows of the product are 128 output pixels that form a box: in the image, and where images are
// small in several of them. Its k are taps (kh, kw) and 64 channels c at a time. All that one step
// needs of x is then that box, shifted by the tap: a box of x itself, which the engine copies in one
// go. With stride 2 it takes every other pixel. Where the box leaves the image, in the padding or
// beyond the last pixel, it brings zeros: no index is computed, no border is a case.
#include <algorithm>
#include <bit>

#include "cuda/hopper/conv_wgmma.h"
#include "cuda/hopper/wgmma.h"

namespace mutilde::cuda {
namespace {

using namespace hopper;

/// Output pixels of a block: n h w = kRows.
struct Box {
  int n, h, w;
};

__global__ void __launch_bounds__(kThreads)
    conv(ConvSizes s, int N, Box box, const __grid_constant__ CUtensorMap x,
         const __grid_constant__ CUtensorMap weight, const float* __restrict__ bias,
         float* __restrict__ out) {
  Shared& shared = shared_memory();
  const int boxes_w = (s.W_out + box.w - 1) / box.w, boxes_h = (s.H_out + box.h - 1) / box.h;
  const int w_out = blockIdx.x % boxes_w * box.w, h_out = blockIdx.x / boxes_w % boxes_h * box.h;
  const int n = blockIdx.x / boxes_w / boxes_h * box.n, c_out = blockIdx.y * kColumns;
  const int steps_c = (s.C + kDepth - 1) / kDepth, steps = s.kH * s.kW * steps_c;
  const int group = threadIdx.x / kGroup;
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();

  if (group == kGroups) {
    if (threadIdx.x % 32 != 0) return;
    return produce(shared, steps, [&](int step, Stage& stage, uint64_t* full) {
      const int tap = step / steps_c, c = step % steps_c * kDepth;
      copy_tile(x, n, h_out * s.stride + tap / s.kW - s.padding,
                w_out * s.stride + tap % s.kW - s.padding, c, stage.a, full);
      copy_tile(weight, c_out, tap, c, stage.b, full);
    });
  }
  float sum[64] = {};
  consume<LayoutB::kAlongK>(shared, group, steps, sum);
  store_sums(group, sum, [&](int row, int tile_column, float2 pair) {
    const int w = w_out + row % box.w, h = h_out + row / box.w % box.h, i = n + row / box.w / box.h;
    const int column = c_out + tile_column;
    if (w >= s.W_out || h >= s.H_out || i >= N || column >= s.C_out) return;
    if (bias != nullptr) pair = make_float2(pair.x + bias[column], pair.y + bias[column + 1]);
    const size_t pixel = (size_t(i) * s.H_out + h) * s.W_out + w;
    *reinterpret_cast<float2*>(out + pixel * s.C_out + column) = pair;
  });
}

Box box_for(const ConvSizes& s) {
  const int w = std::min<int>(std::bit_ceil(unsigned(s.W_out)), kRows);
  const int h = std::min<int>(std::bit_ceil(unsigned(s.H_out)), kRows / w);
  return {kRows / w / h, h, w};
}

}  // namespace

void conv2d_wgmma(const ConvSizes& s, int N, const __nv_bfloat16* x, const __nv_bfloat16* weight,
                  const float* bias, float* out, cudaStream_t stream) {
  require_hopper("conv2d_wgmma");
  if (s.C % 8 != 0 || s.C_out % 2 != 0 || s.stride > 2) {
    fail<Error>(
        "conv2d_wgmma: {} channels to {} with stride {}: a multiple of 8 to a multiple of 2 with "
        "at "
        "most 2 expected",
        s.C, s.C_out, s.stride);
  }
  if (N == 0 || s.H_out == 0 || s.W_out == 0) return;
  const Box box = box_for(s);
  const auto stride = cuuint32_t(s.stride);
  const CUtensorMap x_map = tensor_map<4>(
      x, {cuuint64_t(s.C), cuuint64_t(s.W), cuuint64_t(s.H), cuuint64_t(N)},
      {64, box.w * stride, box.h * stride, cuuint32_t(box.n)}, {1, stride, stride, 1});
  const CUtensorMap weight_map =
      tensor_map<3>(weight, {cuuint64_t(s.C), cuuint64_t(s.kH * s.kW), cuuint64_t(s.C_out)},
                    {64, 1, kColumns}, {1, 1, 1});
  const auto count = [](int n, int of) { return unsigned((n + of - 1) / of); };
  launch<conv>({.grid = {count(s.W_out, box.w) * count(s.H_out, box.h) * count(N, box.n),
                         count(s.C_out, kColumns)},
                .block = kThreads,
                .shared_bytes = kSharedBytes,
                .stream = stream},
               s, N, box, x_map, weight_map, bias, out);
}

}  // namespace mutilde::cuda
