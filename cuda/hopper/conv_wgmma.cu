// Rung 5 of the convolution (conv_plain.cu has 1, product_tiled.h, product_wmma.h and product_mma.h 2 to 4):
// Hopper's copy engine and wgmma. wgmma.h tells what is gained and why, and has all but which tiles are copied.
//
// Forward, the rows of the product are output pixels that form a box: in the image, and where images are
// small in several of them. Its k are taps (kh, kw) and 64 channels c at a time. All that one step needs of
// x is then that box, shifted by the tap: a box of x itself, which the engine copies in one go. With
// stride 2 it takes every other pixel. Where the box leaves the image, in the padding or beyond the last
// pixel, it brings zeros: no index is computed, no border is a case.
//
// In the gradient of the input the rows are input pixels, k are taps and c_out, and what is shifted is a box of
// dout: pixel h of x met output pixel h_out by tap kh where h + padding - kh = h_out stride. With stride 2 that
// has a solution for every other kh only, the even or the odd ones, as h + padding is. So there are four kinds of
// pixels, of even and odd h and w, each the convolution with a part of the taps; pixels of a kind are one apart
// in dout, and the result goes to every other pixel of dx. (Zeros between the pixels of dout would make it one
// convolution, of four times the work.) The weight is not transposed for this: its rows in memory run along c, which
// are the columns here and not k (Layout::kAlongOuter).
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

/// How many pixels: those of a product, or the box of them that is copied at once. Or which one.
struct Pixels {
  int n, h, w;
};

__host__ __device__ int boxes(const Pixels& all, const Pixels& box) {
  return ceil_div(all.w, box.w) * ceil_div(all.h, box.h) * ceil_div(all.n, box.n);
}

/// Where box i begins.
__device__ Pixels begin_of(int i, const Pixels& all, const Pixels& box) {
  const int boxes_w = ceil_div(all.w, box.w), boxes_h = ceil_div(all.h, box.h);
  return {i / boxes_w / boxes_h * box.n, i / boxes_w % boxes_h * box.h, i % boxes_w * box.w};
}

/// Along h or w: which taps a pixel of the product meets, and where. Pixel i meets in the factor, by the j-th of
/// `count` taps, which is tap first + j * step, pixel i * scale + offset + j * direction.
struct Side {
  int first, step, count, scale, offset, direction;
  __device__ int tap(int j) const { return first + j * step; }
  __device__ int met(int i, int j) const { return i * scale + offset + j * direction; }
};

/// For output pixels i, or for the input pixels i * stride + phase. There h = i stride + phase and kh = first + j stride,
/// put into h + padding - kh = h_out stride, give h_out = i - j + (phase + padding - first) / stride, and that is whole
/// for first = (phase + padding) mod stride. Pixels of a kind that no tap meets have count 0, and a gradient of 0.
template <bool of_input>
__device__ Side side(int taps, int stride, int padding, int phase) {
  if constexpr (!of_input) {
    return {0, 1, taps, stride, -padding, 1};
  } else {
    const int first = (phase + padding) % stride;
    return {first,
            stride,
            ceil_div(max(taps - first, 0), stride),
            1,
            (phase + padding - first) / stride,
            -1};
  }
}

/// of_input: the gradient of the input, where x is dout and out is dx. all: of one kind, which is z of the grid.
template <class Tile, bool of_input, class Out>
__global__ void __launch_bounds__(kThreads, Tile::kBlocks)
    conv(ConvSizes s, Pixels all, Pixels box, const __grid_constant__ CUtensorMap x,
         const __grid_constant__ CUtensorMap weight, const float* __restrict__ bias,
         const Out* __restrict__ residual, Out* __restrict__ out) {
  auto& shared = Tile::shared_memory();
  const Pixels begin = begin_of(blockIdx.x, all, box);
  const int columns = of_input ? s.C : s.C_out, first_column = blockIdx.y * Tile::kColumns;
  const int phase_h = of_input ? blockIdx.z / s.stride : 0;
  const int phase_w = of_input ? blockIdx.z % s.stride : 0;
  const Side side_h = side<of_input>(s.kH, s.stride, s.padding, phase_h);
  const Side side_w = side<of_input>(s.kW, s.stride, s.padding, phase_w);
  const int steps_c = ceil_div(of_input ? s.C_out : s.C, kDepth);
  const int steps = side_h.count * side_w.count * steps_c, group = threadIdx.x / kGroup;
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();

  if (group == kGroups) {
    if (threadIdx.x % 32 != 0) return;
    return produce<Tile>(shared, steps, [&](int step, typename Tile::Stage& stage, uint64_t* full) {
      const int c = step % steps_c * kDepth, j_h = step / steps_c / side_w.count,
                j_w = step / steps_c % side_w.count;
      const int tap = side_h.tap(j_h) * s.kW + side_w.tap(j_w);
      copy_tile(x, begin.n, side_h.met(begin.h, j_h), side_w.met(begin.w, j_w), c, stage.a, full);
      if constexpr (of_input) {
        for (int half = 0; half < Tile::kColumns / 64; ++half) {
          copy_tile(weight, c, tap, first_column + half * 64, stage.b + half * kBlockTile, full);
        }
      } else {
        copy_tile(weight, first_column, tap, c, stage.b, full);
      }
    });
  }
  typename Tile::Sums sums = {};
  consume<Tile, Layout::kAlongK, of_input ? Layout::kAlongOuter : Layout::kAlongK>(shared, group,
                                                                                   steps, sums);
  const int H = of_input ? s.H : s.H_out, W = of_input ? s.W : s.W_out;
  const int apart = of_input ? s.stride : 1;
  const auto at = [&](int row, int tile_column) -> int64_t {
    const int w = (begin.w + row % box.w) * apart + phase_w;
    const int h = (begin.h + row / box.w % box.h) * apart + phase_h;
    const int n = begin.n + row / box.w / box.h, column = first_column + tile_column;
    if (w >= W || h >= H || n >= all.n || column >= columns) return -1;
    return ((int64_t{n} * H + h) * W + w) * columns + column;
  };
  store_tile<Tile>(group, sums, out, residual, at, [&](int tile_column) {
    const int column = first_column + tile_column;
    if (bias == nullptr || column >= columns) return make_float2(0, 0);
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
    conv_backward_weight(ConvSizes s, Pixels all, Pixels box, int chunk,
                         const __grid_constant__ CUtensorMap x,
                         const __grid_constant__ CUtensorMap dout, float* __restrict__ partial) {
  using WeightTile = WeightTileOf<E>;
  static_assert(WeightTile::kRows == kWeightRows && WeightTile::kColumns == kWeightColumns);
  auto& shared = WeightTile::shared_memory();
  const int pieces_c = ceil_div(s.C, 64), taps = s.kH * s.kW;
  const int c_out = blockIdx.x * WeightTile::kRows, first_piece = blockIdx.y * kPieces;
  const int group = threadIdx.x / kGroup;
  const int first = blockIdx.z * chunk, steps = min(boxes(all, box) - first, chunk);
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();

  if (group == kGroups) {
    if (threadIdx.x % 32 != 0) return;
    return produce<WeightTile>(
        shared, steps, [&](int step, typename WeightTile::Stage& stage, uint64_t* full) {
          const Pixels begin = begin_of(first + step, all, box);
          for (int half = 0; half < WeightTile::kRows / 64; ++half) {
            copy_tile(dout, begin.n, begin.h, begin.w, c_out + half * 64,
                      stage.a + half * kBlockTile, full);
          }
          for (int i = 0; i < kPieces; ++i) {  // those beyond the last tap are not stored
            const int piece = min(first_piece + i, pieces(s) - 1);
            const int tap = piece / pieces_c;
            copy_tile(x, begin.n, begin.h * s.stride + tap / s.kW - s.padding,
                      begin.w * s.stride + tap % s.kW - s.padding, piece % pieces_c * 64,
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
  store_tile<WeightTile>(group, sums, partial, nullptr, at, no_bias);
}

/// A box of `pixels` pixels, each side a power of two. The engine takes every stride-th pixel of a span of at most 256
/// a side.
Pixels box_of(int pixels, const Pixels& all, int stride) {
  const int w =
      std::min({int(std::bit_ceil(unsigned(std::min(all.w, 256)))), pixels, 256 / stride});
  const int h =
      std::min({int(std::bit_ceil(unsigned(std::min(all.h, 256)))), pixels / w, 256 / stride});
  return {pixels / w / h, h, w};
}

template <class E>
CUtensorMap images_map(const E* images, int N, int H, int W, int C, const Pixels& box, int stride) {
  const auto step = cuuint32_t(stride);
  return tensor_map<4>(images, {cuuint64_t(C), cuuint64_t(W), cuuint64_t(H), cuuint64_t(N)},
                       {64, box.w * step, box.h * step, cuuint32_t(box.n)}, {1, step, step, 1});
}

template <class E>
CUtensorMap weight_map(const E* weight, int C_out, int taps, int C, int box_c_out) {
  return tensor_map<3>(weight, {cuuint64_t(C), cuuint64_t(taps), cuuint64_t(C_out)},
                       {64, 1, cuuint32_t(box_c_out)}, {1, 1, 1});
}

Pixels output_pixels(const ConvSizes& s, int N) { return {N, s.H_out, s.W_out}; }
/// Of each kind, rounded up.
Pixels input_pixels(const ConvSizes& s, int N) {
  return {N, ceil_div(s.H, s.stride), ceil_div(s.W, s.stride)};
}

/// The largest tiles of which there are enough for all multiprocessors. (The size of a tile changes
/// no sum.) of_input as for the kernel.
template <bool of_input, class E, class Out>
void launch_conv(const ConvSizes& s, int N, const E* x, const E* weight, const float* bias,
                 const Out* residual, Out* out, cudaStream_t stream) {
  const Pixels all = of_input ? input_pixels(s, N) : output_pixels(s, N);
  const int columns = of_input ? s.C : s.C_out, kinds = of_input ? s.stride * s.stride : 1;
  const int taps = s.kH * s.kW, stride = of_input ? 1 : s.stride;
  const auto launch_as = [&]<class Tile>(Tile) {
    const Pixels box = box_of(Tile::kRows, all, stride);
    launch<conv<Tile, of_input, Out>>(
        {.grid = {unsigned(boxes(all, box)), unsigned(ceil_div(columns, Tile::kColumns)),
                  unsigned(kinds)},
         .block = kThreads,
         .shared_bytes = Tile::kSharedBytes,
         .stream = stream},
        s, all, box,
        of_input ? images_map(x, N, s.H_out, s.W_out, s.C_out, box, stride)
                 : images_map(x, N, s.H, s.W, s.C, box, stride),
        weight_map(weight, s.C_out, taps, s.C, of_input ? 64 : Tile::kColumns), bias, residual,
        out);
  };
  const int enough = ceil_div(multiprocessors() * 9, 10);
  const auto tiles = [&](int rows, int tile_columns) {
    return boxes(all, box_of(rows, all, stride)) * ceil_div(columns, tile_columns) * kinds;
  };
  const bool fits_wide = ceil_div(columns, 128) % 2 == 0;
  if (fits_wide && tiles(128, 256) >= enough) return launch_as(Blocking<E, 1, 2>{});
  if (tiles(256, 128) >= enough) return launch_as(Blocking<E, 2, 1>{});
  if (tiles(128, 128) > multiprocessors()) return launch_as(Blocking<E, 1, 1>{});
  launch_as(Blocking<E, 1, 1, true>{});
}

/// Tiles of results for the 132 multiprocessors of an H100 or H200, once or twice, and no chunk that is not worth
/// its partial sums. Constants, so that every GPU adds up the same chunks.
int boxes_of_chunk(const ConvSizes& s, int N) {
  constexpr int kLeastChunk = 8, kBlocks = 132;
  const int tiles = ceil_div(s.C_out, kWeightRows) * ceil_div(pieces(s), kPieces);
  const int once = kBlocks / tiles, twice = 2 * kBlocks / tiles;
  const int wanted = 10 * once * tiles >= 9 * kBlocks ? once : twice;
  const Pixels all = output_pixels(s, N);
  const int n = boxes(all, box_of(kDepth, all, s.stride));
  return ceil_div(n, std::max(1, std::min(wanted, n / kLeastChunk)));
}

}  // namespace

template <class E, class Out>
void conv2d_wgmma(const ConvSizes& s, int N, const E* x, const E* weight, const float* bias,
                  const Out* residual, Out* out, cudaStream_t stream) {
  require("conv2d_wgmma", conv2d_wgmma_takes(s, sizeof(Out) == 2));
  launch_conv<false>(s, N, x, weight, bias, residual, out, stream);
}

template <class E, class Out>
void conv2d_backward_input_wgmma(const ConvSizes& s, int N, const E* dout, const E* weight, Out* dx,
                                 cudaStream_t stream) {
  require("conv2d_backward_input_wgmma", conv2d_backward_wgmma_takes(s));
  launch_conv<true, E, Out>(s, N, dout, weight, nullptr, nullptr, dx, stream);
}

int conv2d_backward_weight_chunks(const ConvSizes& s, int N) {
  const Pixels all = output_pixels(s, N);
  return ceil_div(boxes(all, box_of(kDepth, all, s.stride)), boxes_of_chunk(s, N));
}

template <class E>
void conv2d_backward_weight_wgmma(const ConvSizes& s, int N, const E* x, const E* dout,
                                  float* partial, cudaStream_t stream) {
  require("conv2d_backward_weight_wgmma", conv2d_backward_wgmma_takes(s));
  const Pixels all = output_pixels(s, N), box = box_of(kDepth, all, s.stride);
  launch<conv_backward_weight<E>>(
      {.grid = {unsigned(ceil_div(s.C_out, kWeightRows)), unsigned(ceil_div(pieces(s), kPieces)),
                unsigned(conv2d_backward_weight_chunks(s, N))},
       .block = kThreads,
       .shared_bytes = WeightTileOf<E>::kSharedBytes,
       .stream = stream},
      s, all, box, boxes_of_chunk(s, N), images_map(x, N, s.H, s.W, s.C, box, s.stride),
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
