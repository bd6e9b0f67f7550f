// Rung 4 of the convolution (conv_plain.cu has 1, product_tiled.h and product_wmma.h 2 and 3): Hopper's
// copy engine and wgmma. wgmma.h tells what is gained and why, and has all but which tiles are copied.
//
// Forward, the rows of the product are 128 output pixels that form a box: in the image, and where
// images are small in several of them. Its k are taps (kh, kw) and 64 channels c at a time. All that
// one step needs of x is then that box, shifted by the tap: a box of x itself, which the engine copies
// in one go. With stride 2 it takes every other pixel. Where the box leaves the image, in the padding or
// beyond the last pixel, it brings zeros: no index is computed, no border is a case.
//
// In the gradient of the weight the pixels are the k, 64 in a box; rows are c_out, columns the c of one
// tap. Both factors lie along their outers then. There are few tiles of results and many pixels, so
// blocks share those of a tile: each sums a chunk of boxes, and the caller adds up the chunks.
//
// The gradient of the input with stride 1 is a convolution, of dout with the weight turned by half a
// turn: the caller does that (conv.cu).
#include <algorithm>
#include <bit>

#include "cuda/hopper/wgmma.h"

namespace mutilde::cuda {
namespace {

using namespace hopper;

/// Output pixels that are copied at once, n h w of them, and where box i of all begins.
struct Box {
  int n, h, w;
};

__host__ __device__ int boxes(const ConvSizes& s, int N, const Box& box) {
  return ceil_div(s.W_out, box.w) * ceil_div(s.H_out, box.h) * ceil_div(N, box.n);
}

__device__ Box begin_of(int i, const ConvSizes& s, const Box& box) {
  const int boxes_w = ceil_div(s.W_out, box.w), boxes_h = ceil_div(s.H_out, box.h);
  return {i / boxes_w / boxes_h * box.n, i / boxes_w % boxes_h * box.h, i % boxes_w * box.w};
}

/// Of x, the pixels that a tap meets where the output's are the box that begins there.
__device__ void copy_patches(const CUtensorMap& x, const ConvSizes& s, const Box& begin, int tap,
                             int c, __nv_bfloat16* tile, uint64_t* full) {
  copy_tile(x, begin.n, begin.h * s.stride + tap / s.kW - s.padding,
            begin.w * s.stride + tap % s.kW - s.padding, c, tile, full);
}

__global__ void __launch_bounds__(kThreads)
    conv(ConvSizes s, int N, Box box, const __grid_constant__ CUtensorMap x,
         const __grid_constant__ CUtensorMap weight, const float* __restrict__ bias,
         float* __restrict__ out) {
  Shared& shared = shared_memory();
  const Box begin = begin_of(blockIdx.x, s, box);
  const int c_out = blockIdx.y * kColumns;
  const int steps_c = ceil_div(s.C, kDepth), steps = s.kH * s.kW * steps_c;
  const int group = threadIdx.x / kGroup;
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();

  if (group == kGroups) {
    if (threadIdx.x % 32 != 0) return;
    return produce(shared, steps, [&](int step, Stage& stage, uint64_t* full) {
      const int tap = step / steps_c, c = step % steps_c * kDepth;
      copy_patches(x, s, begin, tap, c, stage.a, full);
      copy_tile(weight, c_out, tap, c, stage.b, full);
    });
  }
  float sum[64] = {};
  consume<Layout::kAlongK, Layout::kAlongK>(shared, group, steps, sum);
  store_sums(group, sum, [&](int row, int tile_column, float2 pair) {
    const int w = begin.w + row % box.w, h = begin.h + row / box.w % box.h;
    const int n = begin.n + row / box.w / box.h, column = c_out + tile_column;
    if (w >= s.W_out || h >= s.H_out || n >= N || column >= s.C_out) return;
    if (bias != nullptr) pair = make_float2(pair.x + bias[column], pair.y + bias[column + 1]);
    const size_t pixel = (size_t(n) * s.H_out + h) * s.W_out + w;
    *reinterpret_cast<float2*>(out + pixel * s.C_out + column) = pair;
  });
}

__global__ void __launch_bounds__(kThreads)
    conv_backward_weight(ConvSizes s, int N, Box box, int chunk,
                         const __grid_constant__ CUtensorMap x,
                         const __grid_constant__ CUtensorMap dout, float* __restrict__ partial) {
  Shared& shared = shared_memory();
  const int tiles_c = ceil_div(s.C, kColumns), taps = s.kH * s.kW;
  const int tap = blockIdx.y / tiles_c, c = blockIdx.y % tiles_c * kColumns;
  const int c_out = blockIdx.x * kRows, group = threadIdx.x / kGroup;
  const int first = blockIdx.z * chunk, steps = min(boxes(s, N, box) - first, chunk);
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();

  if (group == kGroups) {
    if (threadIdx.x % 32 != 0) return;
    return produce(shared, steps, [&](int step, Stage& stage, uint64_t* full) {
      const Box begin = begin_of(first + step, s, box);
      for (int half = 0; half < 2; ++half) {
        copy_tile(dout, begin.n, begin.h, begin.w, c_out + half * 64, stage.a + half * kHalfTile,
                  full);
        copy_patches(x, s, begin, tap, c + half * 64, stage.b + half * kHalfTile, full);
      }
    });
  }
  float sum[64] = {};
  consume<Layout::kAlongOuter, Layout::kAlongOuter>(shared, group, steps, sum);
  store_sums(group, sum, [&](int tile_row, int tile_column, float2 pair) {
    const int row = c_out + tile_row, column = c + tile_column;
    if (row >= s.C_out || column >= s.C) return;
    const size_t weight = (size_t(blockIdx.z) * s.C_out + row) * taps + tap;
    *reinterpret_cast<float2*>(partial + weight * s.C + column) = pair;
  });
}

Box box_of(int pixels, const ConvSizes& s) {
  const int w = std::min<int>(std::bit_ceil(unsigned(s.W_out)), pixels);
  const int h = std::min<int>(std::bit_ceil(unsigned(s.H_out)), pixels / w);
  return {pixels / w / h, h, w};
}

/// For boxes of output pixels, seen from the images [N, H, W, C] whose every `stride`-th pixel they meet.
CUtensorMap images_map(const __nv_bfloat16* images, int N, int H, int W, int C, const Box& box,
                       int stride) {
  const auto step = cuuint32_t(stride);
  return tensor_map<4>(images, {cuuint64_t(C), cuuint64_t(W), cuuint64_t(H), cuuint64_t(N)},
                       {64, box.w * step, box.h * step, cuuint32_t(box.n)}, {1, step, step, 1});
}

/// Of the gradient of the weight: tiles for 264 blocks, two for each of an H100's multiprocessors, and
/// no chunk that is not worth its partial sums.
int boxes_of_chunk(const ConvSizes& s, int N) {
  constexpr int kBlocks = 264, kLeastChunk = 8;
  const int tiles = ceil_div(s.C_out, kRows) * ceil_div(s.C, kColumns) * s.kH * s.kW;
  const int n = boxes(s, N, box_of(kDepth, s));
  return ceil_div(n, std::clamp(std::min(kBlocks / tiles, n / kLeastChunk), 1, kBlocks));
}

}  // namespace

void conv2d_wgmma(const ConvSizes& s, int N, const __nv_bfloat16* x, const __nv_bfloat16* weight,
                  const float* bias, float* out, cudaStream_t stream) {
  require("conv2d_wgmma", conv2d_wgmma_takes(s));
  const Box box = box_of(kRows, s);
  const CUtensorMap weight_map =
      tensor_map<3>(weight, {cuuint64_t(s.C), cuuint64_t(s.kH * s.kW), cuuint64_t(s.C_out)},
                    {64, 1, kColumns}, {1, 1, 1});
  launch<conv>({.grid = {unsigned(boxes(s, N, box)), unsigned(ceil_div(s.C_out, kColumns))},
                .block = kThreads,
                .shared_bytes = kSharedBytes,
                .stream = stream},
               s, N, box, images_map(x, N, s.H, s.W, s.C, box, s.stride), weight_map, bias, out);
}

int conv2d_backward_weight_chunks(const ConvSizes& s, int N) {
  return ceil_div(boxes(s, N, box_of(kDepth, s)), boxes_of_chunk(s, N));
}

void conv2d_backward_weight_wgmma(const ConvSizes& s, int N, const __nv_bfloat16* x,
                                  const __nv_bfloat16* dout, float* partial, cudaStream_t stream) {
  require("conv2d_backward_weight_wgmma", conv2d_backward_weight_wgmma_takes(s));
  const Box box = box_of(kDepth, s);
  launch<conv_backward_weight>(
      {.grid = {unsigned(ceil_div(s.C_out, kRows)), unsigned(ceil_div(s.C, kColumns) * s.kH * s.kW),
                unsigned(conv2d_backward_weight_chunks(s, N))},
       .block = kThreads,
       .shared_bytes = kSharedBytes,
       .stream = stream},
      s, N, box, boxes_of_chunk(s, N), images_map(x, N, s.H, s.W, s.C, box, s.stride),
      images_map(dout, N, s.H_out, s.W_out, s.C_out, box, 1), partial);
}

}  // namespace mutilde::cuda
