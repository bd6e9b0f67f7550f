// # 1. Tensors
//
// A network is arithmetic on large tables of numbers, and a tensor is such a table: some numbers in
// a row in memory, and a *shape* that says how to read them. This page has everything there is to
// know about the tensors of this library, and it is not much. That is on purpose.
#include <set>

#include "core/ops/ops.h"
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {
namespace {

// ## A shape, and numbers in a row
//
// A batch of images has shape $[N, H, W, C]$: images, rows, columns, channels. The numbers lie in
// memory *row-major*: the last index runs fastest. So element $(n, h, w, c)$ is found
//
// $$\mathrm{offset} = ((n H + h)\, W + w)\, C + c$$
//
// numbers from the start. Two images of 2 x 3 pixels and 4 channels hold 48 numbers. We fill them
// with 0, 1, 2, ..., so that each number is its own offset, and look one up with the formula:
//
// ```text
// shape [2,2,3,4], rank 4, 48 numbers, float32, 192 bytes
// element (1, 0, 2, 3) is number 35
// ```
void row_major() {
  const Tensor x = Tensor::arange(48).to(DType::kFloat32).reshape({2, 2, 3, 4});
  fmt::print("shape {}, rank {}, {} numbers, {}, {} bytes\n", x.shape(), x.rank(), x.numel(),
             name_of(x.dtype()), x.bytes());
  const int64_t n = 1, h = 0, w = 2, c = 3;
  const int64_t H = x.size(1), W = x.size(2), C = x.size(3);
  const int64_t offset = ((n * H + h) * W + w) * C + c;
  fmt::print("element ({}, {}, {}, {}) is number {:.0f}\n", n, h, w, c, x.data<float>()[offset]);
}

// ## A handle to shared storage
//
// A `Tensor` is small: a shape, a type, and a pointer to storage that it shares with others.
// Copying a `Tensor` copies the handle, not the numbers, so tensors are passed around freely.
// `clone()` copies the numbers. Two more functions return the same storage under another shape:
// `reshape`, and `slice`, which takes a range of the *first* axis. Both ranges are in one piece in
// memory, so nothing needs to move. Below, everything that shares storage with `x` sees the 100:
//
// ```text
// x:             0 1 2 100 4 5
// a copy of x:   0 1 2 100 4 5
// as [3,2]:      0 1 2 100 4 5
// its row 1:     2 100
// a clone:       0 1 2 3 4 5
// ```
void handles_and_views() {
  const Tensor x = Tensor::from<float>({2, 3}, {0, 1, 2, 3, 4, 5});
  const Tensor copy = x, reshaped = x.reshape({3, 2}), row = reshaped.slice(1, 2);
  const Tensor clone = x.clone();
  row.data<float>()[1] = 100;
  const auto show = [](const char* name, const Tensor& tensor) {
    fmt::print("{:14} {}\n", name, fmt::join(tensor.values<float>(), " "));
  };
  show("x:", x);
  show("a copy of x:", copy);
  show("as [3,2]:", reshaped);
  show("its row 1:", row);
  show("a clone:", clone);
}

// ## No strides
//
// Other libraries go further. They keep a *stride* for each axis (how far to the next element), and
// then a transposed matrix, or every second column, is a view as well. It is clever, and it is paid
// for in every kernel: either it computes with strides, or it asks "and what if this is not in one
// piece?" Here a tensor always is in one piece, and a kernel is a loop over a pointer. The price is
// a copy where axes really change places. `permute` makes one, and you can see it:
//
// ```text
// as [2,3]:      0 1 2 3 4 5
// permuted:      0 3 1 4 2 5
// shares storage with x: no
// ```
//
// How often is that? The UNet and its training do not permute anything. The one place in this
// library is where weights are read or written in PyTorch's order (`nn/module.cpp`). And `matmul`
// takes a flag for each side that is to be read transposed.
void no_strides() {
  const Tensor x = Tensor::from<float>({2, 3}, {0, 1, 2, 3, 4, 5});
  const Tensor permuted = permute(x, {1, 0});
  fmt::print("as [2,3]:      {}\n", fmt::join(x.values<float>(), " "));
  fmt::print("permuted:      {}\n", fmt::join(permuted.values<float>(), " "));
  fmt::print("shares storage with x: {}\n", permuted.raw() == x.raw() ? "yes" : "no");
}

// ## Channels last
//
// An image could also be stored as $[N, C, H, W]$, one plane for each channel, and many libraries
// do that. Why not here? Most work in a network is done on all channels of one pixel. Memory comes
// in lines of 64 bytes, so count the lines that hold the 64 channels of one pixel:
//
// ```text
// 64 channels of one pixel of 32 x 32: 4 cache lines if channels are last, 64 if they are first
// ```
size_t cache_lines(int64_t first, int64_t step, int64_t count) {
  std::set<int64_t> lines;
  for (int64_t i = 0; i < count; ++i) {
    lines.insert((first + i * step) * static_cast<int64_t>(sizeof(float)) / 64);
  }
  return lines.size();
}

void channels_together() {
  const int64_t H = 32, W = 32, C = 64, h = 5, w = 7;
  fmt::print(
      "{} channels of one pixel of {} x {}: {} cache lines if channels are last, {} if they are "
      "first\n",
      C, H, W, cache_lines((h * W + w) * C, 1, C), cache_lines(h * W + w, H * W, C));
}

// There is a second reason. With channels last, a batch of images *is* a matrix with one row for
// each pixel, $[N H W, C]$: a `reshape`, no copy. A convolution with a kernel of 1 x 1 sends the
// channels of each pixel through one and the same matrix, so it is nothing but a matrix product.
// (Tutorial 4 does the same with larger kernels, and attention reads $[N, H W, C]$.)
//
// ```text
// 1 x 1 convolution and matrix product agree to 1e-12: yes
// ```
void convolution_is_a_product() {
  Generator random(1);
  const Tensor x = random.normal({2, 8, 8, 16}, DType::kFloat64);        // [N, H, W, C]
  const Tensor weight = random.normal({32, 1, 1, 16}, DType::kFloat64);  // [C_out, 1, 1, C]
  const Tensor convolved = conv2d(x, weight, Tensor());
  const Tensor rows = x.reshape({2 * 8 * 8, 16});
  const Tensor product = matmul(rows, weight.reshape({32, 16}), false, /*transpose_b=*/true);
  const double apart = max(abs(convolved.reshape({2 * 8 * 8, 32}) - product)).item();
  fmt::print("1 x 1 convolution and matrix product agree to 1e-12: {}\n",
             apart < 1e-12 ? "yes" : "no");
}

// ## Arithmetic, and shapes that do not fit
//
// Ops are functions from tensors to a new tensor. Two shapes need not be equal: they are compared
// from the *last* axis backwards, and an axis of size 1, or one that is missing, is repeated. So
// one number for each channel, $[C]$, is added to every pixel of $[N, H, W, C]$, and one for each
// image is given as $[N, 1, 1, 1]$. What cannot fit is refused, and the message says what was
// wrong:
//
// ```text
// [2,8,8,16] + [16] -> [2,8,8,16]
// [2,8,8,16] * [2,1,1,1] -> [2,8,8,16]
// add: shapes [2,8,8,16] and [8] do not broadcast
// ```
void shapes_that_fit() {
  const Tensor x = Tensor::zeros({2, 8, 8, 16});
  const Tensor channel = Tensor::zeros({16}), image = Tensor::zeros({2, 1, 1, 1});
  fmt::print("{} + {} -> {}\n", x.shape(), channel.shape(), (x + channel).shape());
  fmt::print("{} * {} -> {}\n", x.shape(), image.shape(), (x * image).shape());
  try {
    x + Tensor::zeros({8});
  } catch (const ShapeError& error) {
    fmt::print("{}\n", error.what());
  }
}

// ## Two precisions
//
// Training runs in float32, which keeps 24 bits of a number, about 7 digits. Everything in `core/`
// runs in float64 as well (53 bits, 16 digits), which is slower, and good for one thing above all:
// finding out whether code is right (tutorial 3). Here is what
// a small number leaves behind when a large one is added and taken away again:
//
// ```text
// float32: 1 + 1e-8 - 1 = 0
// float64: 1 + 1e-8 - 1 = 1e-08
// ```
void two_precisions() {
  for (DType dtype : {DType::kFloat32, DType::kFloat64}) {
    const Tensor one = Tensor::full({}, 1.0, dtype), small = Tensor::full({}, 1e-8, dtype);
    fmt::print("{}: 1 + 1e-8 - 1 = {:.1g}\n", name_of(dtype), (one + small - one).item());
  }
}

}  // namespace

// ## What you now know
//
// A tensor is a shape and a handle to numbers in one row. `reshape` and `slice` are free,
// everything else makes a new tensor. Channels are last, so pixels are rows of a matrix. Whoever
// reads a kernel in `core/cpu/` needs no more than this. Next: how a tensor knows its derivative.
void tutorial_main(const Options&) {
  row_major();
  handles_and_views();
  no_strides();
  channels_together();
  convolution_is_a_product();
  shapes_that_fit();
  two_precisions();
}

}  // namespace mutilde::tutorial
