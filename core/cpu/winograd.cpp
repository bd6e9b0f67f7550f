#include "core/cpu/winograd.h"

#include <algorithm>
#include <cstdint>

#include "core/cpu/gemm.h"
#include "core/cpu/parallel.h"
#include "core/cpu/scratch.h"
#include "core/cpu/simd.h"

namespace mutilde {
namespace {

// ------------------------------------------------------------------------------------------------
// A block of tiles goes through the three steps on one thread, so that U and M stay in its L2 or
// close: with 64 channels each way and m = 4 a tile is 18 KB, a block of 24 tiles 442 KB. Its 36
// products have 24 rows, 4 tiles of the micro-kernel; the transformed weights (36 * 64 * 64 floats,
// 590 KB) go by once a block, 2.7 bytes a cycle from L3.
//
// Work for one tile and 8 channels each way, m = 4: the transforms take about 350 vector
// instructions, the products 36 * C / 2 cycles (C = 64: 1,152), the direct sum 144 * C / 2 (4,608).
//
// Where there are few tiles (fewer than kTasks blocks), a step at a time over all of them, shared by the
// threads: first by tiles, then by positions, then by tiles. Each number is the same sum either way.
// ------------------------------------------------------------------------------------------------

constexpr int64_t kBlockBytes = 448 * 1024;

/// Tiles in a block: whole tiles of the micro-kernel, at least 24.
template <int m, class T>
int64_t block_tiles(int64_t channels) {
  constexpr int kTile = WinogradTransform<m>::kTile;
  const int64_t bytes = kTile * kTile * channels * static_cast<int64_t>(sizeof(T));
  return std::max<int64_t>(24 / kTileRows, kBlockBytes / bytes / kTileRows) * kTileRows;
}

/// Floats from one position of the tiles to the next. One cache line more than the data: the
/// positions of a tile are written together, and at a power of two they would all fall into the
/// same few sets of L1.
template <class T>
int64_t position_pitch(int64_t tiles, int64_t channels) {
  return tiles * channels + 64 / static_cast<int64_t>(sizeof(T));
}

/// Applies `apply` to the columns and then to the rows of a kFrom x kFrom tile: load(i, j) gives an
/// element, store(i, j, v) takes one of the kTo x kTo results.
template <int kFrom, int kTo, class V, class Apply, class Load, class Store>
inline void transform_tile(const Apply& apply, const Load& load, const Store& store) {
  V middle[kTo][kFrom];
#pragma GCC unroll 6
  for (int j = 0; j < kFrom; ++j) {
    V column[kFrom], result[kTo];
#pragma GCC unroll 6
    for (int i = 0; i < kFrom; ++i) column[i] = load(i, j);
    apply(column, result);
#pragma GCC unroll 6
    for (int i = 0; i < kTo; ++i) middle[i][j] = result[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < kTo; ++i) {
    V result[kTo];
    apply(middle[i], result);
#pragma GCC unroll 6
    for (int j = 0; j < kTo; ++j) store(i, j, result[j]);
  }
}

/// Where the tiles of a batch of images lie: tile t covers outputs [h, h + m) x [w, w + m).
struct TileGrid {
  int64_t rows, columns, m;
  struct Place {
    int64_t n, h, w;
  };
  TileGrid(int64_t H_out, int64_t W_out, int64_t tile)
      : rows(ceil_div(H_out, tile)), columns(ceil_div(W_out, tile)), m(tile) {}
  Place operator[](int64_t t) const {
    return {t / (rows * columns), t / columns % rows * m, t % columns * m};
  }
};

/// Addresses of the kSize x kSize pixels from (h, w) on of image n; those outside are `outside`.
template <int kSize, class P>
void pixels_of(P* image, int64_t H, int64_t W, int64_t C, int64_t n, int64_t h, int64_t w,
               P* outside, P* (&pixel)[kSize][kSize]) {
  for (int i = 0; i < kSize; ++i) {
    const bool row_inside = h + i >= 0 && h + i < H;
    for (int j = 0; j < kSize; ++j) {
      const bool inside = row_inside && w + j >= 0 && w + j < W;
      pixel[i][j] = inside ? image + ((n * H + h + i) * W + w + j) * C : outside;
    }
  }
}

template <class T>
const T* zeros(int64_t count) {
  T* z = scratch<T>(Scratch::kZeros, count);
  std::fill_n(z, count, T(0));
  return z;
}

/// U for tiles [begin, end): position e of tile t and channel c at u[e * pitch + (t - begin) * C +
/// c].
template <int m, class T>
void transform_input(const Conv3x3<T>& conv, int64_t begin, int64_t end, int64_t pitch, T* u) {
  using Transform = WinogradTransform<m>;
  constexpr int kTile = Transform::kTile;
  using V = simd::Vec<T>;
  const TileGrid grid(conv.H_out, conv.W_out, m);
  const T* outside = zeros<T>(conv.C_src);
  for (int64_t t = begin; t < end; ++t, u += conv.C_src) {
    const auto [n, h, w] = grid[t];
    const T* pixel[kTile][kTile];
    pixels_of(conv.src, conv.H, conv.W, conv.C_src, n, h - conv.padding, w - conv.padding, outside,
              pixel);
    for (int64_t c = 0; c < conv.C_src; c += simd::kLanes<T>) {
      transform_tile<kTile, kTile, V>(
          [](const auto& d, auto& r) { Transform::input(d, r); },
          [&](int i, int j) { return simd::load(pixel[i][j] + c); },
          [&](int i, int j, V v) { simd::store(u + (i * kTile + j) * pitch + c, v); });
    }
  }
}

/// dst for tiles [begin, end) from M, which lies as U does.
template <int m, class T>
void transform_output(const Conv3x3<T>& conv, int64_t begin, int64_t end, int64_t pitch,
                      const T* products) {
  using Transform = WinogradTransform<m>;
  constexpr int kTile = Transform::kTile;
  using V = simd::Vec<T>;
  const TileGrid grid(conv.H_out, conv.W_out, m);
  T* outside = scratch<T>(Scratch::kChannels, conv.C_dst);  // takes what falls past the edge
  for (int64_t t = begin; t < end; ++t, products += conv.C_dst) {
    const auto [n, h, w] = grid[t];
    T* pixel[m][m];
    pixels_of(conv.dst, conv.H_out, conv.W_out, conv.C_dst, n, h, w, outside, pixel);
    for (int64_t c = 0; c < conv.C_dst; c += simd::kLanes<T>) {
      const V bias = conv.bias != nullptr ? simd::load(conv.bias + c) : V{};
      transform_tile<kTile, m, V>(
          [](const auto& d, auto& r) { Transform::output(d, r); },
          [&](int i, int j) { return simd::load(products + (i * kTile + j) * pitch + c); },
          [&](int i, int j, V v) { simd::store(pixel[i][j] + c, v + bias); });
    }
  }
}

/// W: for each position the packed panels of its C_src x C_dst matrix.
template <int m, class T>
void transform_weight(const Conv3x3<T>& conv, T* packed) {
  using Transform = WinogradTransform<m>;
  constexpr int kTile = Transform::kTile;
  using V = simd::Vec<T>;
  const int64_t pitch = position_pitch<T>(1, packed_size<T>(conv.C_src, conv.C_dst));
  parallel_tasks(ceil_div(conv.C_dst, kTileColumns<T>), [&](int64_t panel) {
    const int64_t column = panel * kTileColumns<T>, width = panel_width<T>(conv.C_dst - column);
    const int64_t tap_size = conv.C_src * width;
    T* taps = scratch<T>(Scratch::kPackedA, 9 * tap_size);
    for (int64_t kh = 0; kh < 3; ++kh) {
      for (int64_t kw = 0; kw < 3; ++kw) {
        pack_panel<T>(conv.weight + kh * conv.kh_stride + kw * conv.kw_stride, conv.src_stride,
                      conv.dst_stride, conv.C_src, conv.C_dst, column,
                      taps + (kh * 3 + kw) * tap_size);
      }
    }
    T* to = packed + column * conv.C_src;
    for (int64_t k = 0; k < tap_size; k += simd::kLanes<T>) {
      transform_tile<3, kTile, V>(
          [](const auto& g, auto& r) { Transform::filter(g, r); },
          [&](int i, int j) { return simd::load(taps + (i * 3 + j) * tap_size + k); },
          [&](int i, int j, V v) { simd::store(to + (i * kTile + j) * pitch + k, v); });
    }
  });
}

/// Positions [first, last) of the products of `tiles` tiles: M[e] = U[e] W[e].
template <class T>
void multiply_positions(int64_t C_src, int64_t C_dst, int64_t tiles, int64_t first, int64_t last,
                        const T* packed, const T* u, int64_t u_pitch, T* products,
                        int64_t products_pitch) {
  const int64_t pitch = position_pitch<T>(1, packed_size<T>(C_src, C_dst));
  for (int64_t e = first; e < last; ++e) {
    const Product<T> product{tiles,
                             C_dst,
                             C_src,
                             u + e * u_pitch,
                             C_src,
                             1,
                             nullptr,
                             0,
                             0,
                             nullptr,
                             products + e * products_pitch,
                             C_dst};
    multiply_block(product, packed + e * pitch, 0, tiles, 0, ceil_div(C_dst, kTileColumns<T>));
  }
}

}  // namespace

template <int m, class T>
void winograd_conv(const Conv3x3<T>& conv) {
  constexpr int64_t kPositions = WinogradTransform<m>::kTile * WinogradTransform<m>::kTile;
  const TileGrid grid(conv.H_out, conv.W_out, m);
  const int64_t tiles = conv.N * grid.rows * grid.columns;
  if (tiles == 0) return;
  T* packed = scratch<T>(Scratch::kPackedB,
                         kPositions * position_pitch<T>(1, packed_size<T>(conv.C_src, conv.C_dst)));
  transform_weight<m>(conv, packed);

  const int64_t block = block_tiles<m, T>(conv.C_src + conv.C_dst), blocks = ceil_div(tiles, block);
  if (blocks >= kTasks) {
    parallel_tasks(blocks, [&](int64_t task) {
      const int64_t begin = task * block, end = std::min(begin + block, tiles);
      const int64_t u_pitch = position_pitch<T>(block, conv.C_src);
      const int64_t pitch = position_pitch<T>(block, conv.C_dst);
      T* u = scratch<T>(Scratch::kTiles, kPositions * (u_pitch + pitch));
      T* products = u + kPositions * u_pitch;
      transform_input<m>(conv, begin, end, u_pitch, u);
      multiply_positions(conv.C_src, conv.C_dst, end - begin, 0, kPositions, packed, u, u_pitch,
                         products, pitch);
      transform_output<m>(conv, begin, end, pitch, products);
    });
    return;
  }
  const int64_t u_pitch = position_pitch<T>(tiles, conv.C_src);
  const int64_t pitch = position_pitch<T>(tiles, conv.C_dst);
  T* u = scratch<T>(Scratch::kTiles, kPositions * (u_pitch + pitch));
  T* products = u + kPositions * u_pitch;
  parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
    transform_input<m>(conv, begin, end, u_pitch, u + begin * conv.C_src);
  });
  parallel_tasks(kPositions, [&](int64_t e) {
    multiply_positions(conv.C_src, conv.C_dst, tiles, e, e + 1, packed, u, u_pitch, products,
                       pitch);
  });
  parallel_for(tiles, 1, [&](int64_t begin, int64_t end) {
    transform_output<m>(conv, begin, end, pitch, products + begin * conv.C_dst);
  });
}

// ------------------------------------------------------------------------------------------------
// The gradient of the weight. For a chunk of tiles both operands are transformed, x straight into
// the panels that the micro-kernel reads, [panel][tile][16]; then each position is a product over
// the tiles, C_out x C, added to what the chunks before gave. The sums (36 * C_out * C) are read
// and written once a chunk, so a chunk aims at 96 tiles and more: 8 bytes for 96 multiply-adds.
// ------------------------------------------------------------------------------------------------

namespace {

constexpr int64_t kChunkBytes = 2 * 1024 * 1024;

}  // namespace

template <int m, class T>
void winograd_weight_gradient(int64_t N, int64_t H, int64_t W, int64_t C, int64_t H_out,
                              int64_t W_out, int64_t C_out, int64_t padding, const T* x,
                              const T* dout, T* dweight) {
  using Transform = WinogradTransform<m>;
  constexpr int kTile = Transform::kTile;
  constexpr int64_t kPositions = kTile * kTile, kLanes = simd::kLanes<T>;
  using V = simd::Vec<T>;
  const TileGrid grid(H_out, W_out, m);
  const int64_t tiles = N * grid.rows * grid.columns;
  const int64_t panels = ceil_div(C, kTileColumns<T>);
  const int64_t wanted = kChunkBytes / (kPositions * (C + C_out) * static_cast<int64_t>(sizeof(T)));
  const int64_t chunks =
      std::max<int64_t>(1, ceil_div(tiles, std::clamp<int64_t>(wanted, 96, 384)));
  const int64_t chunk = ceil_div(tiles, chunks);
  const int64_t u_pitch = position_pitch<T>(chunk, C), d_pitch = position_pitch<T>(chunk, C_out);
  T* u = scratch<T>(Scratch::kTiles, kPositions * (u_pitch + d_pitch));
  T* d = u + kPositions * u_pitch;
  // Where the other passes keep their transformed weights, which are as large.
  T* sums = scratch<T>(Scratch::kPackedB, kPositions * C_out * C);

  for (int64_t first = 0; first < tiles; first += chunk) {
    const int64_t count = std::min(chunk, tiles - first);
    parallel_for(count, 1, [&](int64_t begin, int64_t end) {
      const T* outside = zeros<T>(std::max(C, C_out));
      for (int64_t t = begin; t < end; ++t) {
        const auto [n, h, w] = grid[first + t];
        const T* in[kTile][kTile];
        pixels_of(x, H, W, C, n, h - padding, w - padding, outside, in);
        for (int64_t c = 0; c < C; c += kLanes) {
          const int64_t column = c / kTileColumns<T> * kTileColumns<T>;
          T* to = u + column * count + t * panel_width<T>(C - column) + c - column;
          transform_tile<kTile, kTile, V>(
              [](const auto& a, auto& r) { Transform::input(a, r); },
              [&](int i, int j) { return simd::load(in[i][j] + c); },
              [&](int i, int j, V v) { simd::store(to + (i * kTile + j) * u_pitch, v); });
        }
        const T* out[m][m];
        pixels_of(dout, H_out, W_out, C_out, n, h, w, outside, out);
        for (int64_t c = 0; c < C_out; c += kLanes) {
          transform_tile<m, kTile, V>(
              [](const auto& a, auto& r) { Transform::output_adjoint(a, r); },
              [&](int i, int j) { return simd::load(out[i][j] + c); },
              [&](int i, int j, V v) {
                simd::store(d + (i * kTile + j) * d_pitch + t * C_out + c, v);
              });
        }
      }
    });
    parallel_tasks(kPositions, [&](int64_t e) {
      const Product<T> product{C_out, C, count,   d + e * d_pitch,      1, C_out, nullptr,
                               0,     0, nullptr, sums + e * C_out * C, C};
      multiply_block(product, u + e * u_pitch, 0, C_out, 0, panels, first > 0);
    });
  }

  parallel_for(C_out, 1, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t c = 0; c < C; c += kLanes) {
        transform_tile<kTile, 3, V>(
            [](const auto& a, auto& r) { Transform::filter_adjoint(a, r); },
            [&](int i, int j) {
              return tiles == 0 ? V{} : simd::load(sums + ((i * kTile + j) * C_out + o) * C + c);
            },
            [&](int i, int j, V v) { simd::store(dweight + ((o * 3 + i) * 3 + j) * C + c, v); });
      }
    }
  });
}

template <class T>
bool winograd_pays(int64_t H_out, int64_t W_out, int64_t C_in, int64_t C_out) {
  constexpr int64_t kLanes = simd::kLanes<T>;
  if (C_in % kLanes != 0 || C_out % kLanes != 0 || C_in == 0 || C_out == 0) return false;
  // At 4 x 4 a small batch has too few tiles to repay the transformed weights; of tiles that reach
  // past the edge at most a third may be wasted.
  const int64_t tiles = ceil_div(H_out, 4) * ceil_div(W_out, 4);
  return tiles >= 4 && tiles * 16 * 2 <= H_out * W_out * 3;
}

template bool winograd_pays<float>(int64_t, int64_t, int64_t, int64_t);
template bool winograd_pays<double>(int64_t, int64_t, int64_t, int64_t);
template void winograd_conv<2>(const Conv3x3<float>&);
template void winograd_conv<2>(const Conv3x3<double>&);
template void winograd_conv<4>(const Conv3x3<float>&);
template void winograd_conv<4>(const Conv3x3<double>&);
template void winograd_weight_gradient<2>(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                          int64_t, int64_t, const float*, const float*, float*);
template void winograd_weight_gradient<2>(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                          int64_t, int64_t, const double*, const double*, double*);
template void winograd_weight_gradient<4>(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                          int64_t, int64_t, const float*, const float*, float*);
template void winograd_weight_gradient<4>(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                                          int64_t, int64_t, const double*, const double*, double*);

}  // namespace mutilde
