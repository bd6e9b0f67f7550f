// Where a direct convolution and its gradient with respect to the input take from.
//
// Both gather: a destination pixel is a sum over kernel taps of (source pixel) x (matrix of that
// tap). The destination pixels are taken in blocks of 16 tiles (96 pixels with AVX2), the
// destination channels in panels of 16. For each tile a table of runs says where the six source
// pixels of each tap lie; taps of one kernel row that are all inside the image lie next to each
// other and become one run. The table is made once a block and serves every panel.
//
//   for each part of the pixels and panels       a task, which packs its panels
//     for each block of pixels                   the source rows of a block stay in L1 and L2
//       for each panel of channels               taps * C * 16 floats: 74 KB for 3 x 3 x 128,
//         for each slice of kernel rows          cut by kernel rows to 160 KB or one row, in L2
//           for each tile                        16 tiles share each panel, so that the weights
//             multiply_tile                      come from L3 once for 96 pixels: less than 1 byte
//                                                a cycle
//
// Small images (4 x 4 to 16 x 16) have many taps outside: their pixels are taken position by
// position over the batch, so that the six pixels of a tile mostly agree on which taps are outside,
// and a tap outside for all six is no run at all. At 4 x 4 that saves up to 31 % of the arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/cpu/conv.h"
#include "core/cpu/gemm.h"
#include "core/cpu/microkernel.h"
#include "core/cpu/scratch.h"

namespace mutilde {

inline constexpr int64_t kBlockTiles = 16;
inline constexpr int64_t kBlockPixels = kBlockTiles * kTileRows;
inline constexpr int64_t kSmallImage = 256;

/// One axis of a gather: destination position i sits at dst_begin + i * dst_step and takes from
/// source positions i * src_step + first_offset + j for taps j. Tap j is number
/// first_tap + j * tap_step of the kernel.
struct GatherAxis {
  int64_t positions, dst_begin, dst_step, dst_size;
  int64_t src_size, src_step;
  int64_t taps, first_offset, first_tap, tap_step;

  int64_t source(int64_t i, int64_t tap) const { return i * src_step + first_offset + tap; }
  bool inside(int64_t s) const { return s >= 0 && s < src_size; }
  int64_t destination(int64_t i) const { return dst_begin + i * dst_step; }
  int64_t kernel_tap(int64_t j) const { return first_tap + j * tap_step; }
};

inline GatherAxis forward_axis(int64_t in, int64_t out, int64_t kernel, int64_t stride,
                               int64_t padding) {
  return {out, 0, 1, out, in, stride, kernel, -padding, 0, 1};
}

/// dx at positions phase, phase + stride, ...: x position h meets output (h + padding - tap) /
/// stride, for the taps where that is whole: every stride-th. They are taken from the last to the
/// first, so that the outputs that they meet ascend.
inline GatherAxis backward_axis(int64_t in, int64_t out, int64_t kernel, int64_t stride,
                                int64_t padding, int64_t phase) {
  const int64_t first_tap = (phase + padding) % stride;
  const int64_t taps = first_tap < kernel ? (kernel - first_tap + stride - 1) / stride : 0;
  const int64_t last_tap = first_tap + (taps - 1) * stride;
  return {ceil_div(in - phase, stride),          phase,    stride, in, out, 1, taps,
          (phase + padding - last_tap) / stride, last_tap, -stride};
}

template <class F>
struct Gather {
  int64_t N;
  GatherAxis h, w;
  int64_t C_src, C_dst;  // C_src: steps of the micro-kernel
  const F* src;
  Sum<F>* dst;
  const Sum<F>* bias;  // or null

  int64_t pixels() const { return N * h.positions * w.positions; }
  int64_t taps() const { return h.taps * w.taps; }
  int64_t K() const { return taps() * C_src; }
};

struct Pixel {
  int64_t n, i, j;
};

template <class F>
Pixel pixel_at(const Gather<F>& g, int64_t index) {
  const int64_t positions = g.h.positions * g.w.positions;
  if (positions <= kSmallImage) {
    return {index % g.N, index / g.N / g.w.positions, index / g.N % g.w.positions};
  }
  return {index / positions, index % positions / g.w.positions, index % g.w.positions};
}

/// Source rows of one or more taps for each row of a tile.
template <class F>
struct GatherRun {
  const F* row[kTileRows];
  int64_t length;    // taps * C_src
  int64_t b_offset;  // rows of the panel before it
};

template <class F>
struct GatherRuns {
  const GatherRun<F>* run;
  int64_t count;
  const F* panel;
  int64_t width;
  int64_t panel_begin;  // rows of the whole panel before it

  template <size_t kRows>
  int64_t enter(int64_t i, const F* (&a)[kRows], const F*& b) const {
    for (size_t r = 0; r < kRows; ++r) a[r] = run[i].row[r];
    b = panel + (run[i].b_offset - panel_begin) * width;
    return run[i].length;
  }
};

/// The runs of one kernel row for a tile of `rows` pixels; returns how many.
template <class F>
int64_t runs_of_kernel_row(const Gather<F>& g, const Pixel* pixels, int64_t rows,
                           int64_t kernel_row, const F* zeros, GatherRun<F>* runs) {
  const F* first
      [kTileRows];  // where tap 0 of the kernel row would lie; of use if all taps of all rows are inside
  bool any_row = false, merge = true;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t h = g.h.source(pixels[r].i, kernel_row), w = g.w.source(pixels[r].j, 0);
    const bool row_inside = g.h.inside(h);
    first[r] = nullptr;
    any_row |= row_inside;
    merge &= row_inside && w >= 0 && w + g.w.taps <= g.w.src_size;
    if (merge) first[r] = g.src + ((pixels[r].n * g.h.src_size + h) * g.w.src_size + w) * g.C_src;
  }
  if (!any_row || g.w.taps == 0) return 0;
  const int64_t row_offset = kernel_row * g.w.taps * g.C_src;
  if (merge) {
    for (int64_t r = 0; r < kTileRows; ++r) runs->row[r] = first[r < rows ? r : 0];
    runs->length = g.w.taps * g.C_src;
    runs->b_offset = row_offset;
    return 1;
  }
  int64_t count = 0;
  for (int64_t tap = 0; tap < g.w.taps; ++tap) {
    GatherRun<F>& run = runs[count];
    bool any = false;
    for (int64_t r = 0; r < kTileRows; ++r) {
      const Pixel& p = pixels[r < rows ? r : 0];
      const int64_t h = g.h.source(p.i, kernel_row), w = g.w.source(p.j, tap);
      const bool inside = g.h.inside(h) && g.w.inside(w);
      any |= inside;
      run.row[r] = inside ? g.src + ((p.n * g.h.src_size + h) * g.w.src_size + w) * g.C_src : zeros;
    }
    run.length = g.C_src;
    run.b_offset = row_offset + tap * g.C_src;
    count += any;  // the next tap takes the place of one that is outside for all
  }
  return count;
}

/// Where the tiles of pixels [begin, end) take from and write to. It lies in this thread's scratch.
template <class F>
class GatherTable {
 public:
  GatherTable(const Gather<F>& g, int64_t begin, int64_t end)
      : g_(g),
        tiles_(ceil_div(end - begin, kTileRows)),
        pixels_(end - begin),
        runs_(scratch<GatherRun<F>>(Scratch::kRuns, tiles_ * g.taps())),
        bounds_(scratch<int64_t>(Scratch::kBounds, tiles_ * (g.h.taps + 1))) {
    F* zeros = scratch<F>(Scratch::kZeros, g.C_src);  // a source pixel outside
    std::fill_n(zeros, g.C_src, F(0));
    int64_t count = 0;
    for (int64_t tile = 0; tile < tiles_; ++tile) {
      Pixel pixels[kTileRows];
      for (int64_t r = 0; r < rows(tile); ++r) {
        const Pixel p = pixels[r] = pixel_at(g, begin + tile * kTileRows + r);
        const int64_t row = p.n * g.h.dst_size + g.h.destination(p.i);
        destinations_[tile * kTileRows + r] =
            g.dst + (row * g.w.dst_size + g.w.destination(p.j)) * g.C_dst;
      }
      int64_t* bound = bounds_ + tile * (g.h.taps + 1);
      for (int64_t kernel_row = 0; kernel_row < g.h.taps; ++kernel_row) {
        bound[kernel_row] = count;
        count += runs_of_kernel_row(g, pixels, rows(tile), kernel_row, zeros, runs_ + count);
      }
      bound[g.h.taps] = count;
    }
  }

  int64_t tiles() const { return tiles_; }
  /// Pixels of a tile, and where the first channel of each lies.
  int64_t rows(int64_t tile) const {
    return std::min<int64_t>(kTileRows, pixels_ - tile * kTileRows);
  }
  Sum<F>* const* destinations(int64_t tile) const { return destinations_ + tile * kTileRows; }
  /// The runs of kernel rows [begin, end) with their packed weights.
  GatherRuns<F> runs(int64_t tile, int64_t begin, int64_t end, const F* packed,
                     int64_t width) const {
    const int64_t* bound = bounds_ + tile * (g_.h.taps + 1);
    return {runs_ + bound[begin], bound[end] - bound[begin], packed, width,
            begin * g_.w.taps * g_.C_src};
  }

 private:
  const Gather<F>& g_;
  int64_t tiles_, pixels_;
  GatherRun<F>* runs_;
  int64_t* bounds_;  // for each tile where its kernel rows begin, and its end
  Sum<F>* destinations_[kBlockPixels];
};

}  // namespace mutilde
