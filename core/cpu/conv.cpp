// Convolution and its two gradients, channels-last, on the micro-kernel.
#include "core/cpu/conv.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/gemm.h"
#include "core/cpu/microkernel.h"
#include "core/cpu/parallel.h"
#include "core/cpu/scratch.h"
#include "core/cpu/winograd.h"
#include "core/precision.h"

namespace mutilde {
namespace {

// ------------------------------------------------------------------------------------------------
// Forward, and backward with respect to the input.
//
// Both gather: a destination pixel is a sum over kernel taps of (source pixel) x (matrix of that
// tap). The destination pixels are taken in blocks of 16 tiles (96 pixels with AVX2), the
// destination channels in panels of 16. For each tile a table of runs says where the six source
// pixels of each tap lie; taps of one kernel row that are all inside the image lie next to each
// other and become one run. The table is made once a block and serves every panel.
//
//   for each block of pixels (a task)            the source rows of a block stay in L1 and L2
//     for each panel of channels                 taps * C * 16 floats: 74 KB for 3 x 3 x 128,
//       for each slice of kernel rows            cut by kernel rows to at most 160 KB, in L2
//         for each tile                          16 tiles share each panel, so that the weights
//           multiply_tile                        come from L3 once for 96 pixels: less than 1 byte
//                                                a cycle
//
// Small images (4 x 4 to 16 x 16) have many taps outside: their pixels are taken position by
// position over the batch, so that the six pixels of a tile mostly agree on which taps are outside,
// and a tap outside for all six is no run at all. At 4 x 4 that saves up to 31 % of the arithmetic.
// ------------------------------------------------------------------------------------------------

constexpr int64_t kBlockTiles = 16;
constexpr int64_t kBlockPixels = kBlockTiles * kTileRows;
constexpr int64_t kPanelBytes = 160 * 1024;
constexpr int64_t kSmallImage = 256;

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

/// Kernel rows of a panel that are taken at a time.
template <class F>
int64_t rows_in_slice(const Gather<F>& g) {
  const int64_t row_bytes = g.w.taps * g.C_src * kTileColumns<F> * static_cast<int64_t>(sizeof(F));
  return std::clamp<int64_t>(kPanelBytes / std::max<int64_t>(row_bytes, 1), 1,
                             std::max<int64_t>(g.h.taps, 1));
}

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
  const F* first[kTileRows];  // where tap 0 of the kernel row would lie, or null
  bool any_row = false, merge = true;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t h = g.h.source(pixels[r].i, kernel_row), w = g.w.source(pixels[r].j, 0);
    const bool row_inside = g.h.inside(h);
    first[r] = nullptr;
    any_row |= row_inside;
    merge &= row_inside && w >= 0 && w + g.w.taps <= g.w.src_size;
    if (merge) first[r] = g.src + ((pixels[r].n * g.h.src_size + h) * g.w.src_size + w) * g.C_src;
  }
  if (!any_row) return 0;
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
    count += any;
  }
  return count;
}

/// The weight of a gather: element (c_src, c_dst) of the tap (kh, kw) is data[(kh * kW + kw) * tap_stride +
/// c_src * src_stride + c_dst * dst_stride].
template <class T>
struct GatherWeight {
  const T* data;
  int64_t channels;  // c_src, as numbers
  int64_t kW, tap_stride, src_stride, dst_stride;
};

/// Packs kernel rows [begin, end) of one panel.
template <class F>
void pack_kernel_rows(const Gather<F>& g, const GatherWeight<Sum<F>>& weight, int64_t panel,
                      int64_t begin, int64_t end, F* to) {
  const int64_t column = panel * kTileColumns<F>, width = panel_width<F>(g.C_dst - column);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t j = 0; j < g.w.taps; ++j) {
      const int64_t tap = g.h.kernel_tap(i) * weight.kW + g.w.kernel_tap(j);
      pack_panel<F>(weight.data + tap * weight.tap_stride, weight.src_stride, weight.dst_stride,
                    weight.channels, g.C_dst, column, to);
      to += g.C_src * width;
    }
  }
}

/// Pixels [begin, end) of the panels [panel_begin, panel_end). `rows_of(panel, begin, end)` gives packed
/// kernel rows.
template <class F, class Rows>
void gather_block(const Gather<F>& g, const Rows& rows_of, int64_t begin, int64_t end,
                  int64_t panel_begin, int64_t panel_end) {
  const int64_t tiles = ceil_div(end - begin, kTileRows);
  // Layout of the scratch: a source row of zeros, then the runs, then where each tile's kernel rows
  // begin.
  GatherRun<F>* runs = scratch<GatherRun<F>>(Scratch::kRuns, tiles * g.taps());
  F* zeros = scratch<F>(Scratch::kZeros, g.C_src);
  int64_t* bounds = scratch<int64_t>(Scratch::kBounds, tiles * (g.h.taps + 1));
  std::fill_n(zeros, g.C_src, F(0));

  Sum<F>* destinations[kBlockPixels];
  int64_t count = 0;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    Pixel pixels[kTileRows];
    const int64_t first = begin + tile * kTileRows,
                  rows = std::min<int64_t>(kTileRows, end - first);
    for (int64_t r = 0; r < rows; ++r) {
      const Pixel p = pixels[r] = pixel_at(g, first + r);
      const int64_t row = p.n * g.h.dst_size + g.h.destination(p.i);
      destinations[tile * kTileRows + r] =
          g.dst + (row * g.w.dst_size + g.w.destination(p.j)) * g.C_dst;
    }
    for (int64_t kernel_row = 0; kernel_row < g.h.taps; ++kernel_row) {
      bounds[tile * (g.h.taps + 1) + kernel_row] = count;
      count += runs_of_kernel_row(g, pixels, rows, kernel_row, zeros, runs + count);
    }
    bounds[tile * (g.h.taps + 1) + g.h.taps] = count;
  }

  const int64_t slice = rows_in_slice(g);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t column = panel * kTileColumns<F>;
    const int64_t width = panel_width<F>(g.C_dst - column);
    const int64_t columns = std::min(width, g.C_dst - column);
    Sum<F> start[kTileColumns<F>] = {};
    if (g.bias != nullptr) std::copy_n(g.bias + column, columns, start);
    for (int64_t kernel_row = 0; kernel_row == 0 || kernel_row < g.h.taps; kernel_row += slice) {
      const int64_t kernel_row_end = std::min(g.h.taps, kernel_row + slice);
      const F* packed = rows_of(panel, kernel_row, kernel_row_end);
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t* bound = bounds + tile * (g.h.taps + 1);
        const GatherRuns<F> slice_runs{runs + bound[kernel_row],
                                       bound[kernel_row_end] - bound[kernel_row], packed, width,
                                       kernel_row * g.w.taps * g.C_src};
        Sum<F>* c[kTileRows] = {};
        const int64_t rows = std::min<int64_t>(kTileRows, end - begin - tile * kTileRows);
        for (int64_t r = 0; r < rows; ++r) c[r] = destinations[tile * kTileRows + r] + column;
        multiply_tile<F>(rows, width, slice_runs, 1, width, kernel_row == 0 ? start : nullptr, c,
                         columns);
      }
    }
  }
}

template <class F>
void run_gather(const Gather<F>& g, const GatherWeight<Sum<F>>& weight) {
  if (g.pixels() == 0) return;
  // Each task packs the panels that it needs: shared ones would cross from core to core. A panel takes as
  // long as a tile: its rows come from far apart.
  const Cut cut(ceil_div(g.pixels(), kTileRows), ceil_div(g.C_dst, kTileColumns<F>), 1.0);
  parallel_tasks(cut.tasks(), [&](int64_t task) {
    const Cut::Part part = cut[task];
    const int64_t begin = part.first_tile * kTileRows;
    const int64_t end = std::min(part.last_tile * kTileRows, g.pixels());
    if (end - begin <= kBlockPixels) {  // a slice at a time, which stays in L2
      F* packed =
          scratch<F>(Scratch::kPackedB, rows_in_slice(g) * g.w.taps * g.C_src * kTileColumns<F>);
      const auto pack = [&](int64_t panel, int64_t row, int64_t row_end) {
        pack_kernel_rows(g, weight, panel, row, row_end, packed);
        return packed;
      };
      return gather_block(g, pack, begin, end, part.first_panel, part.last_panel);
    }
    const int64_t panel_size = g.K() * kTileColumns<F>;
    F* packed = scratch<F>(Scratch::kPackedB, (part.last_panel - part.first_panel) * panel_size);
    for (int64_t panel = part.first_panel; panel < part.last_panel; ++panel) {
      pack_kernel_rows(g, weight, panel, 0, g.h.taps,
                       packed + (panel - part.first_panel) * panel_size);
    }
    const auto find = [&](int64_t panel, int64_t row, int64_t) {
      const int64_t width = panel_width<F>(g.C_dst - panel * kTileColumns<F>);
      return packed + (panel - part.first_panel) * panel_size + row * g.w.taps * g.C_src * width;
    };
    for (int64_t block = begin; block < end; block += kBlockPixels) {
      gather_block(g, find, block, std::min(block + kBlockPixels, end), part.first_panel,
                   part.last_panel);
    }
  });
}

struct ConvShape {
  int64_t N, H, W, C, C_out, kH, kW, H_out, W_out, stride, padding, padding_w;

  ConvShape(const Shape& x, const Shape& weight, const Shape& out, Conv2dGeometry geometry)
      : N(x[0]),
        H(x[1]),
        W(x[2]),
        C(x[3]),
        C_out(weight[0]),
        kH(weight[1]),
        kW(weight[2]),
        H_out(out[1]),
        W_out(out[2]),
        stride(geometry.stride),
        padding(geometry.padding),
        padding_w(geometry.padding) {}
  bool is_product() const { return kH == 1 && kW == 1 && stride == 1 && padding == 0; }
};

GatherAxis forward_axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t padding) {
  return {out, 0, 1, out, in, stride, kernel, -padding, 0, 1};
}

/// dx at positions phase, phase + stride, ...: x position h meets output (h + padding - tap) /
/// stride, for the taps where that is whole: every stride-th. They are taken from the last to the
/// first, so that the outputs that they meet ascend.
GatherAxis backward_axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t padding,
                         int64_t phase) {
  const int64_t first_tap = (phase + padding) % stride;
  const int64_t taps = first_tap < kernel ? (kernel - first_tap + stride - 1) / stride : 0;
  const int64_t last_tap = first_tap + (taps - 1) * stride;
  return {ceil_div(in - phase, stride),          phase,    stride, in, out, 1, taps,
          (phase + padding - last_tap) / stride, last_tap, -stride};
}

// ------------------------------------------------------------------------------------------------
// Backward with respect to the weight.
//
// dweight[c_out, kh, kw, c] = sum over pixels of dout[pixel, c_out] * x[pixel moved by (kh, kw), c]:
// for each tap a matrix product whose long axis is the pixels. Both factors are read where they lie: the
// rows of a tile are output channels, next to each other in a pixel of dout, its columns input channels,
// next to each other in a pixel of x. The pixels of an output row that a tap finds inside the image are
// one run. (A 1 x 1 kernel of stride 1 is a plain product, core/cpu/gemm.cpp.)
//
//   for each split of the pixels, 64 output channels, 64 input channels (a task)
//     for each chunk of 256 pixels                64 KB of dout and, with stride 1, of x: in L2
//       for each tap, panel of input channels
//         for each tile of output channels
//           multiply_tile, a run for each output row
//
// Where the channels of x fill no vector (an image has 3) the two change places: the columns of a tile are
// output channels, and its rows all (kw, c) of one kernel row, which lie next to each other in a copy of x
// with zeros on both sides.
//
// Splits have sums of their own and are added in order; their number depends on the shape alone, and so
// does the result.
// ------------------------------------------------------------------------------------------------

constexpr int64_t kChunkPixels = 256;
constexpr int64_t kTaskChannels = 64;

/// sums[i, tap, j] = sum over output pixels of a[pixel, i] * b[pixel, j], where one is dout and the other x,
/// moved by the tap.
template <class T>
struct WeightGradient {
  ConvShape s;  // C and C_out: numbers from one pixel to the next
  const T* x;
  const T* dout;
  bool x_is_a;
  int64_t rows, columns;  // how many i and j; whole vectors of j

  int64_t taps() const { return s.kH * s.kW; }
};

/// Pixels next to each other in an output row, and those of x that a tap meets there.
struct TapRun {
  int64_t x, dout;  // where the first ones begin
  int64_t length;
};

/// The runs of a tap for output rows [begin, end) of all images; returns how many.
int64_t runs_of_tap(const ConvShape& s, int64_t kh, int64_t kw, int64_t begin, int64_t end,
                    TapRun* runs) {
  const int64_t first = std::max<int64_t>(0, ceil_div(s.padding_w - kw, s.stride));
  const int64_t last = std::min(s.W_out, ceil_div(s.W + s.padding_w - kw, s.stride));
  if (first >= last) return 0;
  int64_t count = 0;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / s.H_out, h = row % s.H_out * s.stride - s.padding + kh;
    if (h < 0 || h >= s.H) continue;
    const int64_t w = first * s.stride - s.padding_w + kw;
    runs[count++] = {((n * s.H + h) * s.W + w) * s.C, (row * s.W_out + first) * s.C_out,
                     last - first};
  }
  return count;
}

template <class T>
struct TapRuns {
  const TapRun* run;
  int64_t count;
  const T* a;
  const T* b;
  bool x_is_a;

  template <size_t kRows>
  int64_t enter(int64_t i, const T* (&rows)[kRows], const T*& b_start) const {
    const T* first = a + (x_is_a ? run[i].x : run[i].dout);
    for (size_t r = 0; r < kRows; ++r) rows[r] = first + r;
    b_start = b + (x_is_a ? run[i].dout : run[i].x);
    return run[i].length;
  }
};

/// Adds to sums (or begins them) what output rows [begin, end) give for rows [i_begin, i_end) and columns
/// [j_begin, j_end); `sums` holds no others.
template <class T>
void weight_gradient_chunk(const WeightGradient<T>& p, int64_t begin, int64_t end, int64_t i_begin,
                           int64_t i_end, int64_t j_begin, int64_t j_end, bool first, T* sums) {
  const ConvShape& s = p.s;
  TapRun* runs = scratch<TapRun>(Scratch::kRuns, end - begin);
  const T zeros[kTileColumns<T>] = {};
  const int64_t x_step = s.stride * s.C, dout_step = s.C_out;
  const int64_t columns = j_end - j_begin;
  for (int64_t tap = 0; tap < p.taps(); ++tap) {
    const int64_t count = runs_of_tap(s, tap / s.kW, tap % s.kW, begin, end, runs);
    for (int64_t j = j_begin; j < j_end; j += kTileColumns<T>) {
      const int64_t width = panel_width<T>(j_end - j);
      for (int64_t i = i_begin; i < i_end; i += kTileRows) {
        const int64_t rows = std::min<int64_t>(kTileRows, i_end - i);
        T* c[kTileRows] = {};
        for (int64_t r = 0; r < rows; ++r) {
          c[r] = sums + ((i + r - i_begin) * p.taps() + tap) * columns + j - j_begin;
        }
        const TapRuns<T> tap_runs{runs, count, (p.x_is_a ? p.x : p.dout) + i,
                                  (p.x_is_a ? p.dout : p.x) + j, p.x_is_a};
        multiply_tile<T>(rows, width, tap_runs, p.x_is_a ? x_step : dout_step,
                         p.x_is_a ? dout_step : x_step, first ? zeros : nullptr, c, width);
      }
    }
  }
}

/// to[i, tap, j].
template <class T>
void run_weight_gradient(const WeightGradient<T>& p, T* to) {
  const ConvShape& s = p.s;
  const int64_t output_rows = s.N * s.H_out, row_size = p.taps() * p.columns;
  const int64_t rows_of_chunk = std::max<int64_t>(1, kChunkPixels / s.W_out);
  const int64_t chunks = ceil_div(output_rows, rows_of_chunk);
  const int64_t across = ceil_div(p.columns, kTaskChannels);
  const int64_t parts = ceil_div(p.rows, kTaskChannels) * across;
  const int64_t splits = std::min(chunks, ceil_div(kTasks, parts));
  T* partials = splits == 1 ? to : scratch<T>(Scratch::kPartials, splits * p.rows * row_size);
  parallel_tasks(splits * parts, [&](int64_t task) {
    const int64_t split = task / parts, part = task % parts;
    const int64_t i = part / across * kTaskChannels, j = part % across * kTaskChannels;
    const int64_t i_end = std::min(i + kTaskChannels, p.rows);
    const int64_t j_end = std::min(j + kTaskChannels, p.columns), columns = j_end - j;
    const int64_t begin = chunks * split / splits, end = chunks * (split + 1) / splits;
    // In memory of this thread, as in multiply().
    T* sums = scratch<T>(Scratch::kSums, (i_end - i) * p.taps() * columns);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      weight_gradient_chunk(p, chunk * rows_of_chunk,
                            std::min(output_rows, (chunk + 1) * rows_of_chunk), i, i_end, j, j_end,
                            chunk == begin, sums);
    }
    T* at = partials + (split * p.rows + i) * row_size + j;
    for (int64_t row = 0; row < (i_end - i) * p.taps(); ++row) {
      std::copy_n(sums + row * columns, columns, at + row * p.columns);
    }
  });
  if (splits > 1) add_partials(partials, splits, p.rows, row_size, to, row_size);
}

/// to[rows, before + C + after]: from[rows, C] with zeros on both sides.
template <class T>
void copy_with_zeros(const T* from, int64_t rows, int64_t C, int64_t before, int64_t after, T* to) {
  const int64_t pitch = before + C + after;
  parallel_for(rows, ceil_div(16384, pitch), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* at = std::fill_n(to + row * pitch, before, T(0));
      std::fill_n(std::copy_n(from + row * C, C, at), after, T(0));
    }
  });
}

template <class T>
void weight_gradient(const ConvShape& s, const T* x, const T* dout, T* dweight) {
  constexpr int64_t kLanes = simd::kLanes<T>;
  if (s.N * s.H_out * s.W_out * s.C == 0) {
    std::fill_n(dweight, s.C_out * s.kH * s.kW * s.C, T(0));
    return;
  }
  if (s.C % kLanes == 0) {
    return run_weight_gradient(WeightGradient<T>{s, x, dout, false, s.C_out, s.C}, dweight);
  }
  ConvShape wide = s;
  wide.W = s.W + 2 * s.padding;
  wide.kW = 1;  // a kernel row is one tap of kW * C numbers
  wide.padding_w = 0;
  wide.C_out = ceil_div(s.C_out, kLanes) * kLanes;
  T* wide_x = scratch<T>(Scratch::kPackedA, s.N * s.H * wide.W * s.C);
  copy_with_zeros(x, s.N * s.H, s.W * s.C, s.padding * s.C, s.padding * s.C, wide_x);
  if (wide.C_out != s.C_out) {
    const int64_t pixels = s.N * s.H_out * s.W_out;
    T* wide_dout = scratch<T>(Scratch::kPackedB, pixels * wide.C_out);
    copy_with_zeros(dout, pixels, s.C_out, 0, wide.C_out - s.C_out, wide_dout);
    dout = wide_dout;
  }
  const int64_t row = s.kW * s.C;
  T* sums = scratch<T>(Scratch::kChannels, row * s.kH * wide.C_out);
  run_weight_gradient(WeightGradient<T>{wide, wide_x, dout, true, row, wide.C_out}, sums);
  for (int64_t c_out = 0; c_out < s.C_out; ++c_out) {
    for (int64_t kh = 0; kh < s.kH; ++kh) {
      for (int64_t i = 0; i < row; ++i) {
        *dweight++ = sums[(i * s.kH + kh) * wide.C_out + c_out];
      }
    }
  }
}

/// Calls body(source) with the `rows` x `channels` numbers of `source`, or where product_precision()
/// says so with rows of pairs, in memory of this thread.
template <class T, class Body>
void for_factors(const T* source, int64_t rows, int64_t channels, const Body& body) {
  if constexpr (std::is_same_v<T, float>) {
    if (product_precision() == Precision::kBfloat16) {
      const int64_t pairs = steps<simd::Bf16Pair>(channels);
      simd::Bf16Pair* to = scratch<simd::Bf16Pair>(Scratch::kFactors, rows * pairs);
      parallel_for(rows, ceil_div(16384, std::max<int64_t>(channels, 1)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t r = begin; r < end; ++r) {
                       round_row(source + r * channels, channels, to + r * pairs);
                     }
                   });
      return body(static_cast<const simd::Bf16Pair*>(to));
    }
  }
  body(source);
}

}  // namespace

void conv2d_direct(ConstView x, ConstView weight, ConstView bias, Conv2dGeometry geometry,
                   View out) {
  const ConvShape s(x.shape, weight.shape, out.shape, geometry);
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (s.is_product()) {
      return multiply<T>({s.N * s.H * s.W, s.C_out, s.C, x.as<T>(), s.C, 1, weight.as<T>(), 1, s.C,
                          bias.as<T>(), out.as<T>(), s.C_out});
    }
    for_factors(x.as<T>(), s.N * s.H * s.W, s.C, [&](const auto* source) {
      using F = std::remove_cvref_t<decltype(*source)>;
      const Gather<F> gather{s.N,
                             forward_axis(s.H, s.H_out, s.kH, s.stride, s.padding),
                             forward_axis(s.W, s.W_out, s.kW, s.stride, s.padding),
                             steps<F>(s.C),
                             s.C_out,
                             source,
                             out.as<T>(),
                             bias.as<T>()};
      run_gather(gather, GatherWeight<T>{weight.as<T>(), s.C, s.kW, s.C, 1, s.kH * s.kW * s.C});
    });
  });
}

void conv2d_direct_backward_input(ConstView dout, ConstView weight, Conv2dGeometry geometry,
                                  View dx) {
  const ConvShape s(dx.shape, weight.shape, dout.shape, geometry);
  for_float(dx.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (s.is_product()) {
      return multiply<T>({s.N * s.H * s.W, s.C, s.C_out, dout.as<T>(), s.C_out, 1, weight.as<T>(),
                          s.C, 1, nullptr, dx.as<T>(), s.C});
    }
    for_factors(dout.as<T>(), s.N * s.H_out * s.W_out, s.C_out, [&](const auto* source) {
      using F = std::remove_cvref_t<decltype(*source)>;
      for (int64_t phase_h = 0; phase_h < std::min(s.stride, s.H); ++phase_h) {
        for (int64_t phase_w = 0; phase_w < std::min(s.stride, s.W); ++phase_w) {
          const Gather<F> gather{s.N,
                                 backward_axis(s.H, s.H_out, s.kH, s.stride, s.padding, phase_h),
                                 backward_axis(s.W, s.W_out, s.kW, s.stride, s.padding, phase_w),
                                 steps<F>(s.C_out),
                                 s.C,
                                 source,
                                 dx.as<T>(),
                                 nullptr};
          run_gather(gather,
                     GatherWeight<T>{weight.as<T>(), s.C_out, s.kW, s.C, s.kH * s.kW * s.C, 1});
        }
      }
    });
  });
}

void conv2d_direct_backward_weight(ConstView x, ConstView dout, Conv2dGeometry geometry,
                                   View dweight) {
  const ConvShape s(x.shape, dweight.shape, dout.shape, geometry);
  for_float(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (s.is_product()) {
      return multiply<T>({s.C_out, s.C, s.N * s.H * s.W, dout.as<T>(), 1, s.C_out, x.as<T>(), s.C,
                          1, nullptr, dweight.as<T>(), s.C});
    }
    weight_gradient(s, x.as<T>(), dout.as<T>(), dweight.as<T>());
  });
}

// ------------------------------------------------------------------------------------------------
// The backend's entries: Winograd's way where it is faster. In float64, which is there to check
// gradients, the direct sum.
// ------------------------------------------------------------------------------------------------

namespace {

bool takes_winograd(const ConvShape& s, DType dtype) {
  return dtype == DType::kFloat32 && s.kH == 3 && s.kW == 3 && s.stride == 1 && s.padding <= 2 &&
         winograd_pays<float>(s.H_out, s.W_out, s.C, s.C_out);
}

}  // namespace

void CpuBackend::conv2d(ConstView x, ConstView weight, ConstView bias, ConstView residual,
                        Conv2dGeometry geometry, View out) {
  const ConvShape s(x.shape, weight.shape, out.shape, geometry);
  if (!takes_winograd(s, x.dtype)) {
    conv2d_direct(x, weight, bias, geometry, out);
  } else {
    winograd_conv<4>(Conv3x3<float>{s.N, s.H, s.W, s.C, s.H_out, s.W_out, s.C_out, s.padding,
                                    x.as<float>(), weight.as<float>(), 3 * s.C, s.C, 1, 9 * s.C,
                                    bias.as<float>(), out.as<float>()});
  }
  if (residual) accumulate(residual, out);
}

void CpuBackend::conv2d_backward_input(ConstView dout, ConstView weight, Conv2dGeometry geometry,
                                       View dx) {
  const ConvShape s(dx.shape, weight.shape, dout.shape, geometry);
  if (!takes_winograd(s, dx.dtype)) {
    return conv2d_direct_backward_input(dout, weight, geometry, dx);
  }
  // The same convolution of dout with the weight turned round: from its last tap backwards.
  winograd_conv<4>(Conv3x3<float>{s.N, s.H_out, s.W_out, s.C_out, s.H, s.W, s.C, 2 - s.padding,
                                  dout.as<float>(), weight.as<float>() + 8 * s.C, -3 * s.C, -s.C,
                                  9 * s.C, 1, nullptr, dx.as<float>()});
}

void CpuBackend::conv2d_backward_weight(ConstView x, ConstView dout, Conv2dGeometry geometry,
                                        View dweight) {
  const ConvShape s(x.shape, dweight.shape, dout.shape, geometry);
  if (!takes_winograd(s, x.dtype)) {
    return conv2d_direct_backward_weight(x, dout, geometry, dweight);
  }
  winograd_weight_gradient<4>(s.N, s.H, s.W, s.C, s.H_out, s.W_out, s.C_out, s.padding,
                              x.as<float>(), dout.as<float>(), dweight.as<float>());
}

}  // namespace mutilde
