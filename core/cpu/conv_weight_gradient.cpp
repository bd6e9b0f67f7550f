// ------------------------------------------------------------------------------------------------
// The gradient of a direct convolution with respect to the weight: of stride 2, of 4x4 images, in float64, of
// channels that are not whole vectors. The rest goes Winograd's way (conv.cpp chooses). Always in the type of
// the numbers, also where products may round to bfloat16.
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
// Where the channels of x are not whole vectors (an image has 3) the two change places: the columns of a tile
// are output channels, filled up to whole vectors, and its rows all (kw, c) of one kernel row, which lie next
// to each other in a copy of x with zeros on both sides.
//
// Splits have sums of their own and are added in order; their number depends on the shape alone, and so
// does the result.
// ------------------------------------------------------------------------------------------------
#include <algorithm>
#include <cstdint>

#include "core/cpu/conv.h"
#include "core/cpu/gemm.h"
#include "core/cpu/microkernel.h"
#include "core/cpu/parallel.h"
#include "core/cpu/scratch.h"

namespace mutilde {
namespace {

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
  parallel_for(rows, ceil_div(kGrain, pitch), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      T* at = std::fill_n(to + row * pitch, before, T(0));
      std::fill_n(std::copy_n(from + row * C, C, at), after, T(0));
    }
  });
}

template <class T>
void weight_gradient(const ConvShape& s, const T* x, const T* dout, T* dweight) {
  constexpr int64_t kLanes = simd::kLanes<T>;
  if (s.N * s.H_out * s.W_out * s.C * s.C_out == 0) {
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
  for (int64_t c_out = 0; c_out < s.C_out;
       ++c_out) {  // [(kw, c), kh, c_out] to [c_out, kh, (kw, c)]
    for (int64_t kh = 0; kh < s.kH; ++kh) {
      for (int64_t i = 0; i < row; ++i) {
        *dweight++ = sums[(i * s.kH + kh) * wide.C_out + c_out];
      }
    }
  }
}

}  // namespace

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

}  // namespace mutilde
