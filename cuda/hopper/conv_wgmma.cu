// Rung 4 of the convolution (conv_plain.cu has 1, product_tiled.h and product_wmma.h 2 and 3): Hopper's
// copy engine and wgmma. wgmma.h tells what is gained and why, and has all but which tiles are copied.
//
// Forward, the rows of the product are output pixels that form a box: in the image, and where images are
// small in several of them. Its k are taps (kh, kw) and 64 channels c at a time. All that one step needs of
// x is then that box, shifted by the tap: a box of x itself, which the engine copies in one go. With
// stride 2 it takes every other pixel. Where the box leaves the image, in the padding or beyond the last
// pixel, it brings zeros: no index is computed, no border is a case.
//
// The gradient of the input with stride 1 is a convolution too, of dout with the weight turned by half a
// turn: tap by tap from the last to the first, with c_out as k. The weight lies there as it is, which makes
// its rows in memory run along the columns. With stride 2 the caller puts zeros between the pixels of dout.
//
// In the gradient of the weight the pixels are the k, 64 in a box; rows are c_out, columns the 64 c at a time
// of all taps. Both factors lie along their outers then. There are few tiles of results and many pixels, so
// blocks share those of a tile: each sums a chunk of boxes, and the caller adds up the chunks.
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
                             int c, void* tile, uint64_t* full) {
  copy_tile(x, begin.n, begin.h * s.stride + tap / s.kW - s.padding,
            begin.w * s.stride + tap % s.kW - s.padding, c, tile, full);
}

/// `turned`: the gradient of the input, with s that of the convolution of dout.
template <class Tile, bool turned, class Out>
__global__ void __launch_bounds__(kThreads, Tile::kBlocks)
    conv(ConvSizes s, int N, Box box, const __grid_constant__ CUtensorMap x,
         const __grid_constant__ CUtensorMap weight, const float* __restrict__ bias,
         const Out* __restrict__ residual, Out* __restrict__ out) {
  auto& shared = Tile::shared_memory();
  const Box begin = begin_of(blockIdx.x, s, box);
  const int c_out = blockIdx.y * Tile::kColumns, taps = s.kH * s.kW;
  const int steps_c = ceil_div(s.C, kDepth), steps = taps * steps_c;
  const int group = threadIdx.x / kGroup;
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();

  if (group == kGroups) {
    if (threadIdx.x % 32 != 0) return;
    return produce<Tile>(shared, steps, [&](int step, typename Tile::Stage& stage, uint64_t* full) {
      const int tap = step / steps_c, c = step % steps_c * kDepth;
      copy_patches(x, s, begin, tap, c, stage.a, full);
      if constexpr (turned) {
        for (int half = 0; half < Tile::kColumns / 64; ++half) {
          copy_tile(weight, c, taps - 1 - tap, c_out + half * 64, stage.b + half * kBlockTile,
                    full);
        }
      } else {
        copy_tile(weight, c_out, tap, c, stage.b, full);
      }
    });
  }
  typename Tile::Sums sums = {};
  consume<Tile, Layout::kAlongK, turned ? Layout::kAlongOuter : Layout::kAlongK>(shared, group,
                                                                                 steps, sums);
  const auto at = [&](int row, int tile_column) -> int64_t {
    const int w = begin.w + row % box.w, h = begin.h + row / box.w % box.h;
    const int n = begin.n + row / box.w / box.h, column = c_out + tile_column;
    if (w >= s.W_out || h >= s.H_out || n >= N || column >= s.C_out) return -1;
    return ((int64_t{n} * s.H_out + h) * s.W_out + w) * s.C_out + column;
  };
  store_sums<Tile>(group, sums, out, residual, at, [&](int tile_column) {
    const int column = c_out + tile_column;
    if (bias == nullptr || column >= s.C_out) return make_float2(0, 0);
    return make_float2(bias[column], bias[column + 1]);
  });
}

template <class E>
using WeightTileOf = Blocking<E, 1, 2>;
constexpr int kWeightRows = 128, kWeightColumns = 256;  // of it
constexpr int kPieces = kWeightColumns / 64;            // of 64 channels of one tap

__host__ __device__ int pieces(const ConvSizes& s) { return s.kH * s.kW * ceil_div(s.C, 64); }

template <class E>
__global__ void __launch_bounds__(kThreads)
    conv_backward_weight(ConvSizes s, int N, Box box, int chunk,
                         const __grid_constant__ CUtensorMap x,
                         const __grid_constant__ CUtensorMap dout, float* __restrict__ partial) {
  using WeightTile = WeightTileOf<E>;
  static_assert(WeightTile::kRows == kWeightRows && WeightTile::kColumns == kWeightColumns);
  auto& shared = WeightTile::shared_memory();
  const int pieces_c = ceil_div(s.C, 64), taps = s.kH * s.kW;
  const int c_out = blockIdx.x * WeightTile::kRows, first_piece = blockIdx.y * kPieces;
  const int group = threadIdx.x / kGroup;
  const int first = blockIdx.z * chunk, steps = min(boxes(s, N, box) - first, chunk);
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();

  if (group == kGroups) {
    if (threadIdx.x % 32 != 0) return;
    return produce<WeightTile>(
        shared, steps, [&](int step, typename WeightTile::Stage& stage, uint64_t* full) {
          const Box begin = begin_of(first + step, s, box);
          for (int half = 0; half < WeightTile::kRows / 64; ++half) {
            copy_tile(dout, begin.n, begin.h, begin.w, c_out + half * 64,
                      stage.a + half * kBlockTile, full);
          }
          for (int i = 0; i < kPieces; ++i) {  // those beyond the last tap are not stored
            const int piece = min(first_piece + i, pieces(s) - 1);
            copy_patches(x, s, begin, piece / pieces_c, piece % pieces_c * 64,
                         stage.b + i * kBlockTile, full);
          }
        });
  }
  typename WeightTile::Sums sums = {};
  consume<WeightTile, Layout::kAlongOuter, Layout::kAlongOuter>(shared, group, steps, sums);
  const auto at = [&](int tile_row, int tile_column) -> int64_t {
    const int row = c_out + tile_row, piece = first_piece + tile_column / 64;
    const int tap = piece / pieces_c, c = piece % pieces_c * 64 + tile_column % 64;
    if (row >= s.C_out || tap >= taps || c >= s.C) return -1;
    return ((int64_t{blockIdx.z} * s.C_out + row) * taps + tap) * s.C + c;
  };
  store_sums<WeightTile>(group, sums, partial, nullptr, at, no_bias);
}

/// A side of what the copy engine copies spans 256 pixels at most.
Box box_of(int pixels, const ConvSizes& s) {
  const int w = std::min({int(std::bit_ceil(unsigned(s.W_out))), pixels, 256 / s.stride});
  const int h = std::min({int(std::bit_ceil(unsigned(s.H_out))), pixels / w, 256 / s.stride});
  return {pixels / w / h, h, w};
}

/// For boxes of output pixels, seen from the images [N, H, W, C] whose every `stride`-th pixel they meet.
template <class E>
CUtensorMap images_map(const E* images, int N, int H, int W, int C, const Box& box, int stride) {
  const auto step = cuuint32_t(stride);
  return tensor_map<4>(images, {cuuint64_t(C), cuuint64_t(W), cuuint64_t(H), cuuint64_t(N)},
                       {64, box.w * step, box.h * step, cuuint32_t(box.n)}, {1, step, step, 1});
}

template <class E>
CUtensorMap weight_map(const E* weight, int C_out, int taps, int C, int box_c_out) {
  return tensor_map<3>(weight, {cuuint64_t(C), cuuint64_t(taps), cuuint64_t(C_out)},
                       {64, 1, cuuint32_t(box_c_out)}, {1, 1, 1});
}

template <class Tile, bool turned, class E, class Out>
void launch_conv(const ConvSizes& s, int N, const E* x, const E* weight, const float* bias,
                 const Out* residual, Out* out, cudaStream_t stream) {
  const Box box = box_of(Tile::kRows, s);
  const int taps = s.kH * s.kW;
  launch<conv<Tile, turned, Out>>(
      {.grid = {unsigned(boxes(s, N, box)), unsigned(ceil_div(s.C_out, Tile::kColumns))},
       .block = kThreads,
       .shared_bytes = Tile::kSharedBytes,
       .stream = stream},
      s, N, box, images_map(x, N, s.H, s.W, s.C, box, s.stride),
      turned ? weight_map(weight, s.C, taps, s.C_out, 64)
             : weight_map(weight, s.C_out, taps, s.C, Tile::kColumns),
      bias, residual, out);
}

/// The largest tiles of which there are enough for all multiprocessors. (What a tile's size does not change is
/// any sum.)
template <bool turned, class E, class Out>
void launch_best_conv(const ConvSizes& s, int N, const E* x, const E* weight, const float* bias,
                      const Out* residual, Out* out, cudaStream_t stream) {
  const int enough = ceil_div(multiprocessors() * 9, 10);
  const auto tiles = [&](int rows, int columns) {
    return boxes(s, N, box_of(rows, s)) * ceil_div(s.C_out, columns);
  };
  const auto launch_as = [&]<class Tile>(Tile) {
    launch_conv<Tile, turned>(s, N, x, weight, bias, residual, out, stream);
  };
  const bool fits_wide = ceil_div(s.C_out, 128) % 2 == 0;
  if (fits_wide && tiles(128, 256) >= enough) return launch_as(Blocking<E, 1, 2>{});
  if (tiles(256, 128) >= enough) return launch_as(Blocking<E, 2, 1>{});
  if (tiles(128, 128) > multiprocessors()) return launch_as(Blocking<E, 1, 1>{});
  launch_as(Blocking<E, 1, 1, true>{});
}

/// The convolution of dout that is the gradient of the input, dout with zeros between its pixels. Its
/// padding is what the kernel reaches beyond the other's.
ConvSizes turned(const ConvSizes& s) {
  return {
      dilated(s.H_out, s.stride), dilated(s.W_out, s.stride), s.C_out, s.H, s.W, s.C, s.kH, s.kW, 1,
      s.kH - 1 - s.padding};
}

/// Tiles of results for the 132 multiprocessors of an H100 or H200, once or twice, and no chunk that is not worth
/// its partial sums. Constants, so that every GPU adds up the same chunks.
int boxes_of_chunk(const ConvSizes& s, int N) {
  constexpr int kLeastChunk = 8, kBlocks = 132;
  const int tiles = ceil_div(s.C_out, kWeightRows) * ceil_div(pieces(s), kPieces);
  const int once = kBlocks / tiles, twice = 2 * kBlocks / tiles;
  const int wanted = 10 * once * tiles >= 9 * kBlocks ? once : twice;
  const int n = boxes(s, N, box_of(kDepth, s));
  return ceil_div(n, std::max(1, std::min(wanted, n / kLeastChunk)));
}

}  // namespace

template <class E, class Out>
void conv2d_wgmma(const ConvSizes& s, int N, const E* x, const E* weight, const float* bias,
                  const Out* residual, Out* out, cudaStream_t stream) {
  require("conv2d_wgmma", conv2d_wgmma_takes(s, sizeof(Out) == 2));
  launch_best_conv<false>(s, N, x, weight, bias, residual, out, stream);
}

template <class E, class Out>
void conv2d_backward_input_wgmma(const ConvSizes& s, int N, const E* dout, const E* weight, Out* dx,
                                 cudaStream_t stream) {
  require("conv2d_backward_input_wgmma", conv2d_backward_wgmma_takes(s));
  launch_best_conv<true, E, Out>(turned(s), N, dout, weight, nullptr, nullptr, dx, stream);
}

int conv2d_backward_weight_chunks(const ConvSizes& s, int N) {
  return ceil_div(boxes(s, N, box_of(kDepth, s)), boxes_of_chunk(s, N));
}

template <class E>
void conv2d_backward_weight_wgmma(const ConvSizes& s, int N, const E* x, const E* dout,
                                  float* partial, cudaStream_t stream) {
  require("conv2d_backward_weight_wgmma", conv2d_backward_wgmma_takes(s));
  const Box box = box_of(kDepth, s);
  launch<conv_backward_weight<E>>(
      {.grid = {unsigned(ceil_div(s.C_out, kWeightRows)), unsigned(ceil_div(pieces(s), kPieces)),
                unsigned(conv2d_backward_weight_chunks(s, N))},
       .block = kThreads,
       .shared_bytes = WeightTileOf<E>::kSharedBytes,
       .stream = stream},
      s, N, box, boxes_of_chunk(s, N), images_map(x, N, s.H, s.W, s.C, box, s.stride),
      images_map(dout, N, s.H_out, s.W_out, s.C_out, box, 1), partial);
}

#define MUTILDE_INSTANTIATE(E, Out)                                                               \
  template void conv2d_wgmma(const ConvSizes&, int, const E*, const E*, const float*, const Out*, \
                             Out*, cudaStream_t);                                                 \
  template void conv2d_backward_input_wgmma(const ConvSizes&, int, const E*, const E*, Out*,      \
                                            cudaStream_t);
MUTILDE_INSTANTIATE(__nv_bfloat16, float)
MUTILDE_INSTANTIATE(__nv_bfloat16, __nv_bfloat16)
MUTILDE_INSTANTIATE(__half, float)
MUTILDE_INSTANTIATE(__half, __half)
#undef MUTILDE_INSTANTIATE
template void conv2d_backward_weight_wgmma(const ConvSizes&, int, const __nv_bfloat16*,
                                           const __nv_bfloat16*, float*, cudaStream_t);
template void conv2d_backward_weight_wgmma(const ConvSizes&, int, const __half*, const __half*,
                                           float*, cudaStream_t);

}  // namespace mutilde::cuda
