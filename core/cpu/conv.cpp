// Convolution, and its gradient with respect to the input, channels-last, on the micro-kernel; at the end the
// backend's three entries, which choose between the direct sum and Winograd's way.
#include "core/cpu/conv.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/cpu/cpu_backend.h"
#include "core/cpu/gather.h"
#include "core/cpu/gemm.h"
#include "core/cpu/microkernel.h"
#include "core/cpu/parallel.h"
#include "core/cpu/scratch.h"
#include "core/cpu/winograd.h"
#include "core/precision.h"

namespace mutilde {
namespace {

constexpr int64_t kPanelBytes =
    160 * 1024;  // of a panel at a time, but at least a kernel row: it stays in L2

/// Kernel rows of a panel that are taken at a time.
template <class F>
int64_t rows_in_slice(const Gather<F>& g) {
  const int64_t row_bytes = g.w.taps * g.C_src * kTileColumns<F> * static_cast<int64_t>(sizeof(F));
  return std::clamp<int64_t>(kPanelBytes / std::max<int64_t>(row_bytes, 1), 1,
                             std::max<int64_t>(g.h.taps, 1));
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

/// The pixels of a table of the panels [panel_begin, panel_end). `rows_of(panel, begin, end)` gives packed
/// kernel rows.
template <class F, class Rows>
void gather_block(const Gather<F>& g, const GatherTable<F>& table, const Rows& rows_of,
                  int64_t panel_begin, int64_t panel_end) {
  const int64_t slice = rows_in_slice(g);
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    const int64_t column = panel * kTileColumns<F>;
    const int64_t width = panel_width<F>(g.C_dst - column);
    const int64_t columns = std::min(width, g.C_dst - column);
    Sum<F> start[kTileColumns<F>] = {};
    if (g.bias != nullptr) std::copy_n(g.bias + column, columns, start);
    for (int64_t kernel_row = 0; kernel_row == 0 || kernel_row < g.h.taps; kernel_row += slice) {
      const int64_t end = std::min(g.h.taps, kernel_row + slice);
      const F* packed = rows_of(panel, kernel_row, end);
      for (int64_t tile = 0; tile < table.tiles(); ++tile) {
        Sum<F>* c[kTileRows] = {};
        for (int64_t r = 0; r < table.rows(tile); ++r) c[r] = table.destinations(tile)[r] + column;
        multiply_tile<F>(table.rows(tile), width, table.runs(tile, kernel_row, end, packed, width),
                         1, width, kernel_row == 0 ? start : nullptr, c, columns);
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
      return gather_block(g, GatherTable<F>(g, begin, end), pack, part.first_panel,
                          part.last_panel);
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
      gather_block(g, GatherTable<F>(g, block, std::min(block + kBlockPixels, end)), find,
                   part.first_panel, part.last_panel);
    }
  });
}

// ------------------------------------------------------------------------------------------------
// Forward to few channels: the last convolution makes 3 or 6 of 32 and more. A vector of output channels
// would be mostly empty; here its lanes are terms of the sum, which lie next to each other in x and in
// the weight: sums of kDotRows pixels x kOut channels are kept in registers, and the lanes of each are
// added at the end.
// ------------------------------------------------------------------------------------------------

constexpr int kDotRows =
    kTileRows / 3;  // with AVX-512 4 x 3 sums, 3 vectors of weights, 1 of x: half the registers
constexpr int64_t kFewOutputs = 6;

/// out[r][o] = bias[o] + the sum over the runs, for rows [row, row + kDotRows) of a tile.
template <class T, int kOut>
void dot_rows(const GatherRuns<T>& runs, int64_t row, const T* weight, int64_t K, const T* bias,
              T (&out)[kDotRows][kOut]) {
  using V = simd::Vec<T>;
  constexpr int64_t kLanes = simd::kLanes<T>;
  V sums[kDotRows * kOut] = {};
  const auto add = [&](const GatherRun<T>& run, int64_t k, const auto& load) {
    V w[kOut];
    for (int o = 0; o < kOut; ++o) w[o] = load(weight + o * K + run.b_offset + k);
#pragma GCC unroll 4
    for (int r = 0; r < kDotRows; ++r) {
      const V x = load(run.row[row + r] + k);
#pragma GCC unroll 3
      for (int o = 0; o < kOut; ++o) sums[r * kOut + o] = simd::fma(x, w[o], sums[r * kOut + o]);
    }
  };
  for (int64_t i = 0; i < runs.count; ++i) {
    const GatherRun<T>& run = runs.run[i];
    int64_t k = 0;
    for (; k + kLanes <= run.length; k += kLanes) {
      add(run, k, [](const T* from) { return simd::load(from); });
    }
    if (k < run.length) {
      add(run, k, [&](const T* from) { return simd::load_partial(from, run.length - k); });
    }
  }
  for (int first = 0; first < kDotRows * kOut; first += kLanes) {
    V square[kLanes] = {};
    const int count = std::min<int>(kLanes, kDotRows * kOut - first);
    std::copy_n(sums + first, count, square);
    simd::transpose<T>(square);
    V total{};
    for (const V& lane : square) total += lane;
    for (int i = 0; i < count; ++i) {
      const int o = (first + i) % kOut;
      out[(first + i) / kOut][o] = total[i] + (bias != nullptr ? bias[o] : T(0));
    }
  }
}

/// weight: [C_dst][taps * C_src].
template <class T>
void run_few_outputs(const Gather<T>& g, const T* weight) {
  parallel_tasks(ceil_div(g.pixels(), kBlockPixels), [&](int64_t block) {
    const int64_t begin = block * kBlockPixels;
    const GatherTable<T> table(g, begin, std::min(begin + kBlockPixels, g.pixels()));
    for (int64_t tile = 0; tile < table.tiles(); ++tile) {
      const GatherRuns<T> runs = table.runs(tile, 0, g.h.taps, nullptr, 0);
      for (int64_t row = 0; row < table.rows(tile); row += kDotRows) {
        const auto channels = [&]<int kOut>(int64_t o) {
          T out[kDotRows][kOut];
          dot_rows<T, kOut>(runs, row, weight + o * g.K(), g.K(),
                            g.bias != nullptr ? g.bias + o : nullptr, out);
          for (int64_t r = 0; r < std::min<int64_t>(kDotRows, table.rows(tile) - row); ++r) {
            std::copy_n(out[r], kOut, table.destinations(tile)[row + r] + o);
          }
        };
        int64_t o = 0;
        for (; o + 3 <= g.C_dst; o += 3) channels.template operator()<3>(o);
        for (; o < g.C_dst; ++o) channels.template operator()<1>(o);
      }
    }
  });
}

constexpr int64_t kPatches = 8192;  // at a time: of 3 x 3 x 3 numbers 0.9 MB

/// For an image of few channels: what output pixels [first_pixel, last_pixel) are sums over, as
/// [pixel][tap][channel], so that the rest is a product.
template <class T>
const T* copy_patches(const ConvShape& s, const T* x, int64_t first_pixel, int64_t last_pixel) {
  const int64_t pixels = last_pixel - first_pixel, K = s.kH * s.kW * s.C;
  T* patches = scratch<T>(Scratch::kPackedA, pixels * K);
  parallel_for(pixels, ceil_div(kGrain, std::max<int64_t>(K, 1)), [&](int64_t begin, int64_t end) {
    T* to = patches + begin * K;
    for (int64_t pixel = first_pixel + begin; pixel < first_pixel + end; ++pixel) {
      const int64_t n = pixel / (s.H_out * s.W_out);
      const int64_t h = pixel / s.W_out % s.H_out * s.stride - s.padding;
      const int64_t w = pixel % s.W_out * s.stride - s.padding;
      const int64_t first = std::clamp<int64_t>(-w, 0, s.kW),
                    last = std::clamp<int64_t>(s.W - w, first, s.kW);
      for (int64_t kh = 0; kh < s.kH; ++kh) {
        if (h + kh < 0 || h + kh >= s.H) {
          to = std::fill_n(to, s.kW * s.C, T(0));
          continue;
        }
        to = std::fill_n(to, first * s.C, T(0));
        if (first < last) {
          to = std::copy_n(x + ((n * s.H + h + kh) * s.W + w + first) * s.C, (last - first) * s.C,
                           to);
        }
        to = std::fill_n(to, (s.kW - last) * s.C, T(0));
      }
    }
  });
  return patches;
}

/// Calls body(source) with the `rows` x `channels` numbers of `source`, or where product_precision()
/// says so with rows of pairs, in memory of this thread.
template <class T, class Body>
void for_factors(const T* source, int64_t rows, int64_t channels, const Body& body) {
  if constexpr (std::is_same_v<T, float>) {
    if (product_precision() == Precision::kBfloat16) {
      const int64_t pairs = steps<simd::Bf16Pair>(channels);
      simd::Bf16Pair* to = scratch<simd::Bf16Pair>(Scratch::kFactors, rows * pairs);
      parallel_for(rows, ceil_div(kGrain, std::max<int64_t>(channels, 1)),
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

template <class F>
Gather<F> forward_gather(const ConvShape& s, const F* source, Sum<F>* out, const Sum<F>* bias) {
  return {s.N,
          forward_axis(s.H, s.H_out, s.kH, s.stride, s.padding),
          forward_axis(s.W, s.W_out, s.kW, s.stride, s.padding),
          steps<F>(s.C),
          s.C_out,
          source,
          out,
          bias};
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
    // In whole vectors, or the lane of a term would depend on which taps form one run, and that on the batch.
    if (s.C_out <= kFewOutputs && s.C > 0 && s.C % simd::kLanes<T> == 0) {
      return run_few_outputs(forward_gather(s, x.as<T>(), out.as<T>(), bias.as<T>()),
                             weight.as<T>());
    }
    if (s.C < simd::kLanes<T>) {
      const int64_t K = s.kH * s.kW * s.C, pixels = s.N * s.H_out * s.W_out;
      for (int64_t begin = 0; begin < pixels; begin += kPatches) {
        const int64_t end = std::min(begin + kPatches, pixels);
        const T* patches = copy_patches(s, x.as<T>(), begin, end);
        multiply<T>({end - begin, s.C_out, K, patches, K, 1, weight.as<T>(), 1, K, bias.as<T>(),
                     out.as<T>() + begin * s.C_out, s.C_out});
      }
      return;
    }
    for_factors(x.as<T>(), s.N * s.H * s.W, s.C, [&](const auto* source) {
      run_gather(forward_gather(s, source, out.as<T>(), bias.as<T>()),
                 GatherWeight<T>{weight.as<T>(), s.C, s.kW, s.C, 1, s.kH * s.kW * s.C});
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
