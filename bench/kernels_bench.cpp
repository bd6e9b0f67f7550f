// How fast each kernel is on the shapes of the three presets, as a
// share of what the machine can do.
//
//   kernels_bench [small|medium|cifar] [words that the kernel or the shape must contain]
//   kernels_bench --serve ...    the same layers, timed when asked (bench/layers.py does)
//
// `count` is how often a training step runs the shape; the last lines weigh all shapes with it. Where
// oneDNN was found it runs the same layer in turn; `ratio` is its time over ours.
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "bench/onednn.h"
#include "core/cpu/parallel.h"
#include "core/cpu_isa.h"
#include "core/tensor.h"

namespace mutilde::bench {
namespace {

struct Preset {
  const char* name;
  int64_t batch, channels, res_blocks, heads, out_channels;
  std::vector<int64_t> multipliers;
};

const std::vector<Preset> kPresets = {{"small", 32, 32, 1, 4, 3, {1, 2, 2}},
                                      {"medium", 16, 64, 2, 4, 3, {1, 2, 2, 2}},
                                      {"cifar", 4, 128, 3, 4, 6, {1, 2, 2, 2}}};
constexpr int64_t kImageSize = 32;

using Key = std::array<int64_t, 5>;
/// What one forward pass runs: shape -> how often.
struct Workload {
  int64_t batch = 0, heads = 0;
  std::map<Key, int> conv;       // size in, C, C_out, kernel, stride
  std::map<Key, int> linear;     // rows, K, N
  std::map<Key, int> norm;       // size, C, scale and shift, silu
  std::map<Key, int> attention;  // size, C
};

/// The UNet's forward pass, as far as shapes go.
Workload workload(const Preset& preset) {
  Workload work;
  work.batch = preset.batch;
  work.heads = preset.heads;
  const int64_t embedding = 4 * preset.channels;
  const auto conv = [&](int64_t size, int64_t in, int64_t out, int64_t kernel, int64_t stride = 1) {
    ++work.conv[{size, in, out, kernel, stride}];
  };
  const auto res_block = [&](int64_t size, int64_t in, int64_t out) {
    ++work.norm[{size, in, 0, 1}];
    conv(size, in, out, 3);
    ++work.linear[{preset.batch, embedding, 2 * out}];
    ++work.norm[{size, out, 1, 1}];
    conv(size, out, out, 3);
    if (in != out) conv(size, in, out, 1);
  };
  const auto attention = [&](int64_t size, int64_t C) {
    ++work.norm[{size, C, 0, 0}];
    ++work.linear[{preset.batch * size * size, C, 3 * C}];
    ++work.attention[{size, C}];
    ++work.linear[{preset.batch * size * size, C, C}];
  };
  const auto attends = [](int64_t size) { return size == 16 || size == 8; };

  ++work.linear[{preset.batch, preset.channels, embedding}];
  ++work.linear[{preset.batch, embedding, embedding}];
  int64_t size = kImageSize, C = preset.channels;
  conv(size, 3, C, 3);
  std::vector<int64_t> skips = {C};
  for (size_t level = 0; level < preset.multipliers.size(); ++level) {
    for (int64_t block = 0; block < preset.res_blocks; ++block) {
      const int64_t out = preset.channels * preset.multipliers[level];
      res_block(size, C, out);
      C = out;
      if (attends(size)) attention(size, C);
      skips.push_back(C);
    }
    if (level + 1 < preset.multipliers.size()) {
      conv(size, C, C, 3, 2);
      size /= 2;
      skips.push_back(C);
    }
  }
  res_block(size, C, C);
  attention(size, C);
  res_block(size, C, C);
  for (size_t level = preset.multipliers.size(); level-- > 0;) {
    for (int64_t block = 0; block <= preset.res_blocks; ++block) {
      const int64_t out = preset.channels * preset.multipliers[level];
      res_block(size, C + skips.back(), out);
      skips.pop_back();
      C = out;
      if (attends(size)) attention(size, C);
    }
    if (level > 0) {
      size *= 2;
      conv(size, C, C, 3);
    }
  }
  ++work.norm[{size, C, 0, 1}];
  conv(size, C, preset.out_channels, 3);
  return work;
}

/// A tensor, whose memory comes as a program's does, large ones in huge pages; oneDNN gets such too.
struct Buffer {
  Tensor data;
  explicit Buffer(const Shape& shape) : data(Tensor::empty(shape)) {
    uint32_t state = 1;
    for (float& value : data.values<float>()) {
      state = state * 1664525 + 1013904223;
      value = static_cast<float>(state >> 8) / 8388608 - 1;
    }
  }
  const Shape& shape() const { return data.shape(); }
  operator ConstView() const { return data; }
  operator View() { return data; }
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// Median time of a call, in seconds, over 0.03 s and at least 3 calls; the first call warms up.
double burst_seconds(const std::function<void()>& call) {
  call();
  std::vector<double> times;
  for (double total = 0; total < 0.03 || times.size() < 3; total += times.back()) {
    const double start = now();
    call();
    times.push_back(now() - start);
  }
  return median(times);
}

/// One kernel on one shape.
struct Layer {
  std::string kernel, shape;  // as the table names them
  std::string peer_layer;     // as bench/layers.py reads it: a kind of layer and its sizes
  int count;                  // in a training step
  double work;                // floating-point operations, or bytes where `bytes`
  bool bytes;
  std::function<void()> ours, onednn;  // onednn is empty where it has no such layer
};

/// Prints a row a layer, and at the end the sums by kernel, weighed by count.
class Table {
 public:
  explicit Table(double peak) : peak_(peak) {
    fmt::print("{:<27} {:<30} {:>5} {:>9} {:>9} {:>7} {:>10} {:>6}\n", "kernel", "shape", "count",
               "ms", "GFLOP/s", "share", "oneDNN ms", "ratio");
  }
  void add(const Layer& layer) {
    std::vector<double> ours, theirs, ratios;
    for (int turn = 0; turn < 5; ++turn) {
      ours.push_back(burst_seconds(layer.ours));
      if (!layer.onednn) continue;
      theirs.push_back(burst_seconds(layer.onednn));
      ratios.push_back(theirs.back() / ours.back());
    }
    const Total row{median(ours), layer.work, layer.bytes};
    print(layer.kernel, layer.shape, std::to_string(layer.count), row);
    if (layer.onednn) fmt::print(" {:>10.3f} {:>6.2f}", median(theirs) * 1e3, median(ratios));
    fmt::print("\n");
    Total& total = totals_[layer.kernel];
    total.seconds += layer.count * row.seconds;
    total.work += layer.count * row.work;
    total.bytes = row.bytes;
  }
  ~Table() {
    for (const auto& [kernel, total] : totals_) {
      print(kernel, "all, weighed by count", "", total);
      fmt::print("\n");
    }
  }

 private:
  struct Total {
    double seconds = 0, work = 0;
    bool bytes = false;
  };
  void print(const std::string& kernel, const std::string& shape, const std::string& count,
             const Total& total) const {
    const double rate = total.work / total.seconds;
    fmt::print("{:<27} {:<30} {:>5} {:>9.3f} {:>9.1f} {:>7}", kernel, shape, count,
               total.seconds * 1e3, rate * 1e-9,
               total.bytes ? "GB/s" : fmt::format("{:.1f} %", 100 * rate / peak_));
  }

  double peak_;
  std::map<std::string, Total> totals_;
};

/// Announces the layer on a line of its own and times it whenever asked, until the next is asked for.
void serve(const Layer& layer) {
  fmt::print("layer\t{}\t{}\t{}\t{}\t{}\t{}\n", layer.kernel, layer.shape, layer.peer_layer,
             layer.count, layer.work, layer.bytes ? "bytes" : "flops");
  std::fflush(stdout);
  for (std::string word; std::cin >> word && word == "time";) {
    const double ours = burst_seconds(layer.ours) * 1e3;
    const double onednn = layer.onednn ? burst_seconds(layer.onednn) * 1e3 : 0;
    fmt::print("{} {}\n", ours, onednn);
    std::fflush(stdout);
  }
}

/// Empty in a build without oneDNN.
std::function<void()> onednn_conv2d_or_none([[maybe_unused]] auto... arguments) {
#ifdef MUTILDE_ONEDNN
  return onednn_conv2d(arguments...);
#else
  return {};
#endif
}
std::function<void()> onednn_linear_or_none([[maybe_unused]] auto... arguments) {
#ifdef MUTILDE_ONEDNN
  return onednn_linear(arguments...);
#else
  return {};
#endif
}

/// Hands every layer of the preset to `visit`, whose buffers live as long as the visit.
void visit_layers(const Preset& preset, const std::function<void(const Layer&)>& visit) {
  Backend& cpu = cpu_isa().kernels->backend();
  const Workload work = workload(preset);
  const int64_t N = work.batch;

  for (const auto& [key, count] : work.conv) {
    const auto [size, C, C_out, kernel, stride] = key;
    const int64_t size_out = size / stride;
    Buffer x({N, size, size, C}), dx(x.shape()), weight({C_out, kernel, kernel, C}),
        dweight(weight.shape());
    Buffer bias({C_out}), out({N, size_out, size_out, C_out});
    const Conv2dGeometry geometry{stride, kernel / 2};
    const auto layer = [&, size = size, C = C, C_out = C_out, kernel = kernel, stride = stride,
                        count = count](const char* name, Pass pass, std::function<void()> ours) {
      visit({name, fmt::format("{0}x{0} {1}x{1}/{2} {3} -> {4}", size, kernel, stride, C, C_out),
             fmt::format("conv2d {} {} {} {} {} {}", N, size, C, C_out, kernel, stride), count,
             2.0 * static_cast<double>(out.shape().numel() * kernel * kernel * C), false,
             std::move(ours), onednn_conv2d_or_none(pass, N, size, C, C_out, kernel, stride)});
    };
    layer("conv2d", Pass::kForward, [&] { cpu.conv2d(x, weight, bias, {}, geometry, out); });
    if (C > 3) {  // nobody asks for the gradient of the image
      layer("conv2d_backward_input", Pass::kBackwardInput,
            [&] { cpu.conv2d_backward_input(out, weight, geometry, dx); });
    }
    layer("conv2d_backward_weight", Pass::kBackwardWeight,
          [&] { cpu.conv2d_backward_weight(x, out, geometry, dweight); });
  }
  for (const auto& [key, count] : work.linear) {
    const int64_t M = key[0], K = key[1], columns = key[2];
    Buffer x({M, K}), dx(x.shape()), weight({columns, K}), dweight(weight.shape()), bias({columns}),
        out({M, columns});
    const auto batched = [](Buffer& b) {
      return View(b.data.reshape({1, b.shape()[0], b.shape()[1]}));
    };
    const auto layer = [&, count = count](const char* name, Pass pass, std::function<void()> ours) {
      visit({name, fmt::format("{} x {} -> {}", M, K, columns),
             fmt::format("linear {} {} {}", M, K, columns), count,
             2.0 * static_cast<double>(M * columns * K), false, std::move(ours),
             onednn_linear_or_none(pass, M, K, columns)});
    };
    layer("linear", Pass::kForward, [&] { cpu.linear(x, weight, bias, {}, out); });
    layer("linear, gradient of x", Pass::kBackwardInput,
          [&] { cpu.matmul(batched(out), false, batched(weight), false, batched(dx)); });
    layer("linear, gradient of weight", Pass::kBackwardWeight,
          [&] { cpu.matmul(batched(out), true, batched(x), false, batched(dweight)); });
  }
  for (const auto& [key, count] : work.attention) {
    const int64_t T = key[0] * key[0], C = key[1], heads = work.heads;
    Buffer qkv({N, T, 3 * C}), dqkv(qkv.shape()), out({N, T, C}), log_sum_exp({N, heads, T});
    const double flops = 4.0 * static_cast<double>(N * T * T * C);
    const std::string shape = fmt::format("{} positions, {} heads of {}", T, heads, C / heads);
    const std::string peer_layer = fmt::format("attention {} {} {} {}", N, T, heads, C / heads);
    visit({"attention",
           shape,
           peer_layer,
           count,
           flops,
           false,
           [&] { cpu.attention(qkv, heads, out, log_sum_exp); },
           {}});
    visit({"attention_backward",
           shape,
           peer_layer,
           count,
           2.5 * flops,
           false,
           [&] { cpu.attention_backward(qkv, heads, out, log_sum_exp, out, dqkv); },
           {}});
  }
  for (const auto& [key, count] : work.norm) {
    const int64_t P = key[0] * key[0], C = key[1];
    const bool scaled = key[2] != 0, silu = key[3] != 0;
    Buffer x({N, P, C}), out(x.shape()), dx(x.shape()), weight({C}), bias({C}),
        scale_shift({N, 2 * C}), dweight({C}), dbias({C}), dscale_shift({N, 2 * C}), mean({N, 32}),
        rstd({N, 32});
    const GroupNormOptions options{32, 1e-5, silu};
    const double bytes = 4.0 * static_cast<double>(x.shape().numel());
    const std::string shape =
        fmt::format("{} positions of {}{}{}", P, C, scaled ? ", scale" : "", silu ? ", silu" : "");
    const std::string peer_layer = fmt::format("norm {} {} {} {:d} {:d}", N, P, C, scaled, silu);
    const ConstView scale = scaled ? ConstView(scale_shift) : ConstView{};
    // Each reads its inputs and writes its output once at least.
    visit({"group_norm",
           shape,
           peer_layer,
           count,
           2 * bytes,
           true,
           [&] { cpu.group_norm(x, weight, bias, scale, options, out, mean, rstd); },
           {}});
    visit({"group_norm_backward",
           shape,
           peer_layer,
           count,
           3 * bytes,
           true,
           [&] {
             cpu.group_norm_backward(x, weight, bias, scale, mean, rstd, options, out, dx, dweight,
                                     dbias, scaled ? View(dscale_shift) : View{});
           },
           {}});
  }
}

}  // namespace
}  // namespace mutilde::bench

int main(int argc, char** argv) {
  using namespace mutilde::bench;
  std::string only;
  bool serving = false;
  std::vector<std::string> words;
  for (const std::string& argument : std::vector<std::string>(argv + 1, argv + argc)) {
    bool is_preset = false;
    for (const auto& preset : kPresets) is_preset |= argument == preset.name;
    if (is_preset) {
      only = argument;
    } else if (argument == "--serve") {
      serving = true;
    } else {
      words.push_back(argument);
    }
  }
  const auto wanted = [&](const Layer& layer) {
    const std::string name = layer.kernel + " " + layer.shape;
    return std::ranges::all_of(
        words, [&](const std::string& word) { return name.find(word) != std::string::npos; });
  };
  for (const auto& preset : kPresets) {
    if (!only.empty() && only != preset.name) continue;
    const int threads = mutilde::thread_count();
    const mutilde::CpuIsa& isa = mutilde::cpu_isa();
    const double peak = isa.kernels->peak_gflops(threads);
    if (serving) {
      fmt::print("preset\t{}\t{}\t{}\n", preset.name, threads, peak);
      visit_layers(preset, [&](const Layer& layer) {
        if (wanted(layer)) serve(layer);
      });
    } else {
      fmt::print("\n{}: batch {}, {} threads, {}, peak {:.1f} GFLOP/s ({:.1f} on one)\n",
                 preset.name, preset.batch, threads, isa.name, peak, isa.kernels->peak_gflops(1));
      Table table(peak * 1e9);
      visit_layers(preset, [&](const Layer& layer) {
        if (wanted(layer)) table.add(layer);
      });
    }
  }
}
