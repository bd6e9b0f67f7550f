// Convolution and its two gradients, channels-last, on the micro-kernel.
#include "core/cpu/conv.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
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
  int64_t N, H, W, C, C_out, kH, kW, H_out, W_out, stride, padding;

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
        padding(geometry.padding) {}
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
// dweight[c_out, kh, kw, c] = sum over pixels of dout[pixel, c_out] * x[pixel moved by (kh, kw),
// c]: a matrix product whose long axis is the pixels. The rows of a tile are output channels
// (broadcast from dout), its columns 16 input channels of one tap, so that a tile lies in dweight
// as it is.
//
// Both operands are copied, a chunk of about 256 pixels at a time: dout as [tile][pixel][6], x as
// [16 channels][row][column][16] with a border of zeros. In the copy a step along a row is 64 bytes
// whatever C is (with C = 128 the rows of x itself are 512 bytes apart: 256 of them would share 8
// cache sets and evict each other), and all taps read the same copy, moved. 256 pixels of one panel
// are 16 KB and one tile of dout 6 KB, together less than L1; a task keeps dout's copy for 64
// output channels (70 KB) and x's for 16 input channels (22 KB) in L2, and goes through 64 input
// channels with them. (A 1 x 1 kernel of stride 1 is a plain product, core/cpu/gemm.cpp.) An input of fewer than
// 16 channels is copied as one group, and a panel takes 16 columns across (kw, c), which lie next
// to each other in a row.
//
//   for each split of the pixels, part of output channels, part of input channels (a task)
//     for each chunk of pixels: copy, then
//       for each group of 16 channels, kernel row, panel
//         for each tile of output channels
//           multiply_tile, a run for each output row
//
// Splits have a buffer each and are added in order; their number depends on the shape alone, and so
// does the result.
// ------------------------------------------------------------------------------------------------

constexpr int64_t kChunkPixels = 256;
constexpr int64_t kTaskChannels = 64;

template <class T>
struct WeightGradient {
  ConvShape s;
  const T* x;
  const T* dout;

  int64_t K() const { return s.kH * s.kW * s.C; }
  int64_t rows() const { return s.N * s.H_out; }  // output rows of all images
  int64_t group() const { return std::min<int64_t>(s.C, kTileColumns<T>); }
  int64_t padded_width() const { return s.W + 2 * s.padding; }
};

/// x for output rows [begin, end): for each image the input rows that they meet, as
/// [row][column][group]; `bases[r]` is where the input of output row begin + r begins. Returns the
/// elements written.
template <class T>
int64_t pack_input(const WeightGradient<T>& p, int64_t begin, int64_t end, int64_t channel, T* to,
                   int64_t* bases) {
  const ConvShape& s = p.s;
  const int64_t G = p.group(), channels = std::min(G, s.C - channel);
  const int64_t pitch = p.padded_width() * G;
  T* const origin = to;
  for (int64_t row = begin; row < end;) {
    const int64_t n = row / s.H_out, h_out = row % s.H_out;
    const int64_t count = std::min(end - row, s.H_out - h_out);
    for (int64_t r = 0; r < count; ++r) bases[row - begin + r] = to - origin + r * s.stride * pitch;
    const int64_t first = h_out * s.stride - s.padding, rows = (count - 1) * s.stride + s.kH;
    for (int64_t h = first; h < first + rows; ++h, to += pitch) {
      if (h < 0 || h >= s.H) {
        std::fill_n(to, pitch, T(0));
        continue;
      }
      const T* from = p.x + (n * s.H + h) * s.W * s.C + channel;
      T* at = std::fill_n(to, s.padding * G, T(0));
      for (int64_t w = 0; w < s.W; ++w, from += s.C, at += G) {
        if (channels == kTileColumns<T>) {
          simd::store(at, simd::load(from));
          simd::store(at + simd::kLanes<T>, simd::load(from + simd::kLanes<T>));
        } else {
          std::fill(std::copy_n(from, channels, at), at + G, T(0));
        }
      }
      std::fill_n(at, s.padding * G, T(0));
    }
    row += count;
  }
  return to - origin;
}

/// dout for output rows [begin, end) and output channels [c_begin, c_end), as
/// [tile][pixel][kTileRows].
template <class T>
void pack_output(const WeightGradient<T>& p, int64_t begin, int64_t end, int64_t c_begin,
                 int64_t c_end, T* to) {
  const ConvShape& s = p.s;
  const int64_t pixels = (end - begin) * s.W_out;
  for (int64_t c = c_begin; c < c_end; c += kTileRows) {
    const T* from = p.dout + begin * s.W_out * s.C_out + c;
    if (c_end - c >= kTileRows) {
      for (int64_t i = 0; i < pixels; ++i, from += s.C_out, to += kTileRows) {
        std::memcpy(to, from, kTileRows * sizeof(T));
      }
    } else {
      for (int64_t i = 0; i < pixels; ++i, from += s.C_out, to += kTileRows) {
        std::copy_n(from, c_end - c, to);
      }
    }
  }
}

/// One run for each output row: dout goes on where it was, x moves to the row's own place.
template <class T>
struct WeightRuns {
  const T* dout;
  const T* x;
  const int64_t* bases;
  int64_t length, count;

  template <size_t kRows>
  int64_t enter(int64_t i, const T* (&a)[kRows], const T*& b) const {
    for (size_t r = 0; r < kRows; ++r) a[r] = dout + i * length * kTileRows + r;
    b = x + bases[i];
    return length;
  }
};

/// Adds to dweight (or begins it) what output rows [begin, end) give for a range of channels each
/// way.
template <class T>
void weight_gradient_chunk(const WeightGradient<T>& p, int64_t begin, int64_t end,
                           int64_t c_out_begin, int64_t c_out_end, int64_t c_begin, int64_t c_end,
                           bool first, T* dweight) {
  const ConvShape& s = p.s;
  const int64_t G = p.group(), rows = end - begin;
  const int64_t tiles = ceil_div(c_out_end - c_out_begin, kTileRows);
  const int64_t tile_size = rows * s.W_out * kTileRows;
  T* dout = scratch<T>(Scratch::kPackedA, tiles * tile_size);
  pack_output(p, begin, end, c_out_begin, c_out_end, dout);
  // A panel may read past the last column of a group that is narrower than it.
  const int64_t images = rows / s.H_out + 2, input_rows = rows * s.stride + images * s.kH;
  T* x = scratch<T>(Scratch::kPackedB, input_rows * p.padded_width() * G + kTileColumns<T>);
  int64_t* bases = scratch<int64_t>(Scratch::kBounds, rows);
  const T zeros[kTileColumns<T>] = {};

  const int64_t row_columns = G < kTileColumns<T> ? s.kW * G : G;
  for (int64_t channel = c_begin; channel < c_end; channel += G) {
    const int64_t written = pack_input(p, begin, end, channel, x, bases);
    if (G < kTileColumns<T>) std::fill_n(x + written, kTileColumns<T>, T(0));
    const int64_t channels = G < kTileColumns<T> ? row_columns : std::min(G, s.C - channel);
    const int64_t taps = G < kTileColumns<T> ? 1 : s.kW;
    for (int64_t kh = 0; kh < s.kH; ++kh) {
      for (int64_t kw = 0; kw < taps; ++kw) {
        for (int64_t column = 0; column < channels; column += kTileColumns<T>) {
          const int64_t width = panel_width<T>(channels - column);
          const T* from = x + (kh * p.padded_width() + kw) * G + column;
          T* to = dweight + (kh * s.kW + kw) * s.C + channel + column;
          for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t c_out = c_out_begin + tile * kTileRows;
            T* c[kTileRows] = {};
            for (int64_t r = 0; r < kTileRows; ++r) c[r] = to + (c_out + r) * p.K();
            const WeightRuns<T> runs{dout + tile * tile_size, from, bases, s.W_out, rows};
            multiply_tile<T>(std::min<int64_t>(kTileRows, c_out_end - c_out), width, runs,
                             kTileRows, s.stride * G, first ? zeros : nullptr, c,
                             std::min(width, channels - column));
          }
        }
      }
    }
  }
}

template <class T>
void run_weight_gradient(const WeightGradient<T>& p, T* dweight) {
  const ConvShape& s = p.s;
  const int64_t size = s.C_out * p.K(), rows = p.rows(), pixels = rows * s.W_out;
  if (pixels == 0) {
    std::fill_n(dweight, size, T(0));
    return;
  }
  const int64_t rows_of_chunk = std::max<int64_t>(1, kChunkPixels / s.W_out);
  const int64_t chunks = ceil_div(rows, rows_of_chunk);
  const int64_t out_parts = ceil_div(s.C_out, kTaskChannels),
                in_parts = ceil_div(s.C, kTaskChannels);
  const int64_t splits = std::min(chunks, ceil_div(kTasks, out_parts * in_parts));
  T* partials = splits == 1 ? dweight : scratch<T>(Scratch::kPartials, splits * size);
  parallel_tasks(splits * out_parts * in_parts, [&](int64_t task) {
    const int64_t split = task / (out_parts * in_parts), part = task % (out_parts * in_parts);
    const int64_t c_out = part / in_parts * kTaskChannels, c = part % in_parts * kTaskChannels;
    const int64_t begin = chunks * split / splits, end = chunks * (split + 1) / splits;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      weight_gradient_chunk(p, chunk * rows_of_chunk, std::min(rows, (chunk + 1) * rows_of_chunk),
                            c_out, std::min(c_out + kTaskChannels, s.C_out), c,
                            std::min(c + kTaskChannels, s.C), chunk == begin,
                            partials + split * size);
    }
  });
  if (splits == 1) return;
  add_partials(partials, splits, s.C_out, p.K(), dweight, p.K());
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
    run_weight_gradient(WeightGradient<T>{s, x.as<T>(), dout.as<T>()}, dweight.as<T>());
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
