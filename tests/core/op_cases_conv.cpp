#include <algorithm>

#include "core/op_cases.h"
#include "core/ops/ops.h"

namespace mutilde {

namespace {

struct Convolution {
  std::string name;
  Shape x, weight;
  int64_t stride, padding;
  bool has_bias = true;
};

// The definition: each output pixel looks at each tap of the kernel that falls inside the image.
Array convolve(const Arrays& in, int64_t stride, int64_t padding) {
  const Array &x = in[0], &weight = in[1];
  const int64_t kH = weight.size(1), kW = weight.size(2);
  Array out({x.size(0), (x.size(1) + 2 * padding - kH) / stride + 1,
             (x.size(2) + 2 * padding - kW) / stride + 1, weight.size(0)});
  const auto add_tap = [&](int64_t n, int64_t h, int64_t w, int64_t i, int64_t j) {
    const int64_t from_h = h * stride + i - padding, from_w = w * stride + j - padding;
    if (from_h < 0 || from_h >= x.size(1) || from_w < 0 || from_w >= x.size(2)) return;
    for (int64_t c_out = 0; c_out < weight.size(0); ++c_out) {
      for (int64_t c = 0; c < x.size(3); ++c) {
        out(n, h, w, c_out) += x(n, from_h, from_w, c) * weight(c_out, i, j, c);
      }
    }
  };
  for (int64_t n = 0; n < out.size(0); ++n) {
    for (int64_t h = 0; h < out.size(1); ++h) {
      for (int64_t w = 0; w < out.size(2); ++w) {
        for (int64_t tap = 0; tap < kH * kW; ++tap) add_tap(n, h, w, tap / kW, tap % kW);
        for (int64_t c = 0; in.size() > 2 && c < out.size(3); ++c) out(n, h, w, c) += in[2][c];
      }
    }
  }
  return out;
}

OpCase conv_case(const Convolution& conv) {
  const Shape &x = conv.x, &weight = conv.weight;
  OpCase row{
      .name = "Conv2d" + conv.name,
      .inputs = {uniform(x, -1, 1, 1), uniform(weight, -1, 1, 2)},
      .op =
          [conv](const Tensors& in) {
            return conv2d(in[0], in[1], conv.has_bias ? in[2] : Tensor{}, conv.stride,
                          conv.padding);
          },
      .reference = [conv](const Arrays& in) { return convolve(in, conv.stride, conv.padding); },
      // The output sums over a weight's C kH kW, dx over C_out kH kW, dweight over all pixels.
      .terms = static_cast<double>(
          std::max({weight.numel() / weight[0], weight.numel() / weight[3], x.numel() / x[3]})),
      .batched = {0}};
  if (conv.has_bias) row.inputs.push_back(uniform({weight[0]}, -1, 1, 3));
  return row;
}

}  // namespace

std::vector<OpCase> conv_cases() {
  std::vector<OpCase> rows = {
      conv_case({"3x3", {2, 5, 4, 3}, {4, 3, 3, 3}, 1, 1}),
      conv_case({"3x3NoPadding", {2, 5, 4, 3}, {4, 3, 3, 3}, 1, 0}),
      conv_case({"3x3NoBias", {1, 5, 4, 3}, {2, 3, 3, 3}, 1, 1, false}),
      conv_case({"5x5", {1, 6, 7, 2}, {3, 5, 5, 2}, 1, 2}),
      conv_case({"1x1", {2, 3, 5, 6}, {5, 1, 1, 6}, 1, 0}),
      conv_case({"1x1Stride2", {2, 5, 4, 3}, {4, 1, 1, 3}, 2, 0}),
      conv_case({"3x3Stride2", {2, 7, 6, 3}, {4, 3, 3, 3}, 2, 1}),
      conv_case({"4x4Stride2", {1, 8, 6, 2}, {3, 4, 4, 2}, 2, 1}),
      // Some pixels at the edge are looked at by no output.
      conv_case({"2x2Stride3", {2, 7, 9, 2}, {3, 2, 2, 2}, 3, 0}),
      conv_case({"1x3", {2, 3, 5, 2}, {3, 1, 3, 2}, 1, 0}),
      conv_case({"3x2PaddingTwo", {1, 4, 3, 2}, {3, 3, 2, 2}, 1, 2}),
      conv_case({"KernelAsLargeAsTheImage", {2, 3, 3, 4}, {5, 3, 3, 4}, 1, 0}),
      conv_case({"KernelLargerThanTheImage", {2, 2, 2, 3}, {2, 5, 5, 3}, 1, 2}),
      conv_case({"OnePixel", {3, 1, 1, 4}, {2, 3, 3, 4}, 1, 1}),
      conv_case({"OneChannel", {2, 5, 4, 1}, {1, 3, 3, 1}, 1, 1}),
      // Past the edges of the kernels' blocks in each direction, on all threads.
      conv_case({"ManyChannels", {2, 9, 7, 35}, {67, 3, 3, 35}, 1, 1}),
      conv_case({"ManyChannelsStride2", {2, 9, 8, 32}, {48, 3, 3, 32}, 2, 1}),
      conv_case({"1x1ManyChannels", {2, 5, 7, 130}, {70, 1, 1, 130}, 1, 0}),
      // In float32 these are large enough for Winograd's way; in float64 they are direct.
      conv_case({"3x3Tiles", {2, 9, 10, 16}, {32, 3, 3, 16}, 1, 1}),
      conv_case({"3x3TilesNoPadding", {1, 12, 10, 32}, {16, 3, 3, 32}, 1, 0}),
      conv_case({"3x3TilesPaddingTwo", {3, 7, 8, 16}, {16, 3, 3, 16}, 1, 2, false}),
      conv_case({"FromRgb", {2, 17, 15, 3}, {64, 3, 3, 3}, 1, 1}),
      conv_case({"ToRgb", {2, 11, 13, 64}, {3, 3, 3, 64}, 1, 1})};
  // A residual: one more input, of the output's shape, that is added.
  for (const char* name : {"Conv2d3x3", "Conv2d3x3Stride2", "Conv2d3x3Tiles"}) {
    OpCase row = *std::find_if(rows.begin(), rows.end(),
                               [&](const OpCase& other) { return other.name == name; });
    row.name += "Residual";
    const auto formula = row.reference;
    row.reference = [formula](const Arrays& in) {
      Array out = formula({in[0], in[1], in[2]});
      for (int64_t i = 0; i < out.numel(); ++i) out[i] += in[3][i];
      return out;
    };
    const int64_t stride = name == std::string("Conv2d3x3Stride2") ? 2 : 1;
    row.op = [stride](const Tensors& in) { return conv2d(in[0], in[1], in[2], stride, 1, in[3]); };
    row.composition = [stride](const Tensors& in) {
      return conv2d(in[0], in[1], in[2], stride, 1) + in[3];
    };
    const Shape out = row.op({row.inputs[0], row.inputs[1], row.inputs[2], {}}).shape();
    row.inputs.push_back(uniform(out, -1, 1, 4));
    row.batched = {0, 3};
    rows.push_back(row);
  }
  // A 1x1 convolution is a linear layer on each pixel.
  for (OpCase& row : rows) {
    if (row.name != "Conv2d1x1" && row.name != "Conv2d1x1ManyChannels") continue;
    row.composition = [](const Tensors& in) {
      return linear(in[0], in[1].reshape({in[1].size(0), in[1].size(3)}), in[2]);
    };
  }
  return rows;
}

}  // namespace mutilde
