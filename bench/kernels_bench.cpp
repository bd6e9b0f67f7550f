// How fast each kernel is on the shapes of the three presets, as a
// share of what the machine can do.
//
//   kernels_bench [small|medium|cifar] [words that the kernel or the shape must contain]
//
// `count` is how often a training step runs the shape; the last lines weigh all shapes with it.
#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "core/cpu/parallel.h"
#include "core/cpu_isa.h"

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

struct Buffer {
  Shape shape;
  std::vector<float> data;
  explicit Buffer(Shape s) : shape(s), data(static_cast<size_t>(s.numel())) {
    uint32_t state = 1;
    for (float& value : data) {
      state = state * 1664525 + 1013904223;
      value = static_cast<float>(state >> 8) / 8388608 - 1;
    }
  }
  operator ConstView() const { return {data.data(), DType::kFloat32, shape}; }
  operator View() { return {data.data(), DType::kFloat32, shape}; }
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Median time of a call, in seconds, over 0.15 s and at least 5 calls; the first call warms up.
double median_seconds(const std::function<void()>& call) {
  call();
  std::vector<double> times;
  for (double total = 0; total < 0.15 || times.size() < 5; total += times.back()) {
    const double start = now();
    call();
    times.push_back(now() - start);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<int64_t>(times.size() / 2),
                   times.end());
  return times[times.size() / 2];
}

class Table {
 public:
  Table(std::vector<std::string> words, double peak) : words_(std::move(words)), peak_(peak) {
    fmt::print("{:<34} {:<34} {:>5} {:>9} {:>9} {:>7}\n", "kernel", "shape", "count", "ms",
               "GFLOP/s", "share");
  }
  /// work: floating-point operations, or bytes where `bytes`.
  void row(const char* kernel, const std::string& shape, int count, double work, bool bytes,
           const std::function<void()>& call) {
    const std::string name = fmt::format("{} {}", kernel, shape);
    for (const std::string& word : words_) {
      if (name.find(word) == std::string::npos) return;
    }
    const double seconds = median_seconds(call);
    fmt::print("{:<34} {:<34} {:>5} {:>9.3f} {:>9.1f} {:>7}\n", kernel, shape, count, seconds * 1e3,
               work / seconds * 1e-9,
               bytes ? "GB/s" : fmt::format("{:.1f} %", 100 * work / seconds / peak_));
    Total& total = totals_[kernel];
    total.seconds += count * seconds;
    total.work += count * work;
    total.bytes = bytes;
  }
  ~Table() {
    for (const auto& [kernel, total] : totals_) {
      fmt::print(
          "{:<34} {:<34} {:>5} {:>9.3f} {:>9.1f} {:>7}\n", kernel, "all, weighed by count", "",
          total.seconds * 1e3, total.work / total.seconds * 1e-9,
          total.bytes ? "GB/s" : fmt::format("{:.1f} %", 100 * total.work / total.seconds / peak_));
    }
  }

 private:
  struct Total {
    double seconds = 0, work = 0;
    bool bytes = false;
  };
  std::vector<std::string> words_;
  double peak_;
  std::map<std::string, Total> totals_;
};

void measure(const Preset& preset, const std::vector<std::string>& words) {
  const CpuIsa& isa = cpu_isa();
  Backend& cpu = isa.kernels->backend();
  const Workload work = workload(preset);
  const int64_t N = work.batch;
  const double machine = isa.kernels->peak_gflops(thread_count()) * 1e9;
  fmt::print("\n{}: batch {}, {} threads, {}, peak {:.1f} GFLOP/s ({:.1f} on one)\n", preset.name,
             N, thread_count(), isa.name, machine * 1e-9, isa.kernels->peak_gflops(1));
  Table table(words, machine);

  for (const auto& [key, count] : work.conv) {
    const auto [size, C, C_out, kernel, stride] = key;
    const int64_t size_out = size / stride;
    Buffer x({N, size, size, C}), dx(x.shape), weight({C_out, kernel, kernel, C}),
        dweight(weight.shape);
    Buffer bias({C_out}), out({N, size_out, size_out, C_out});
    const Conv2dGeometry geometry{stride, kernel / 2};
    const double flops = 2.0 * static_cast<double>(out.shape.numel() * kernel * kernel * C);
    const std::string shape =
        fmt::format("{0}x{0} {1}x{1}/{2} {3} -> {4}", size, kernel, stride, C, C_out);
    table.row("conv2d", shape, count, flops, false,
              [&] { cpu.conv2d(x, weight, bias, geometry, out); });
    if (C > 3) {
      table.row("conv2d_backward_input", shape, count, flops, false,
                [&] { cpu.conv2d_backward_input(out, weight, geometry, dx); });
    }
    table.row("conv2d_backward_weight", shape, count, flops, false,
              [&] { cpu.conv2d_backward_weight(x, out, geometry, dweight); });
  }
  for (const auto& [key, count] : work.linear) {
    const int64_t M = key[0], K = key[1], columns = key[2];
    Buffer x({M, K}), dx(x.shape), weight({columns, K}), dweight(weight.shape), bias({columns}),
        out({M, columns});
    const double flops = 2.0 * static_cast<double>(M * columns * K);
    const std::string shape = fmt::format("{} x {} -> {}", M, K, columns);
    const auto batched = [](Buffer& b) {
      return View{b.data.data(), DType::kFloat32, {1, b.shape[0], b.shape[1]}};
    };
    table.row("linear", shape, count, flops, false, [&] { cpu.linear(x, weight, bias, out); });
    table.row("linear, gradient of x", shape, count, flops, false,
              [&] { cpu.matmul(batched(out), false, batched(weight), false, batched(dx)); });
    table.row("linear, gradient of weight", shape, count, flops, false,
              [&] { cpu.matmul(batched(out), true, batched(x), false, batched(dweight)); });
  }
  for (const auto& [key, count] : work.attention) {
    const int64_t T = key[0] * key[0], C = key[1];
    Buffer qkv({N, T, 3 * C}), dqkv(qkv.shape), out({N, T, C}), log_sum_exp({N, work.heads, T});
    const double flops = 4.0 * static_cast<double>(N * T * T * C);
    const std::string shape =
        fmt::format("{} positions, {} heads of {}", T, work.heads, C / work.heads);
    table.row("attention", shape, count, flops, false,
              [&] { cpu.attention(qkv, work.heads, out, log_sum_exp); });
    table.row("attention_backward", shape, count, 2.5 * flops, false,
              [&] { cpu.attention_backward(qkv, work.heads, out, log_sum_exp, out, dqkv); });
  }
  for (const auto& [key, count] : work.norm) {
    const int64_t P = key[0] * key[0], C = key[1];
    const bool scaled = key[2] != 0;
    Buffer x({N, P, C}), out(x.shape), dx(x.shape), weight({C}), bias({C}), scale_shift({N, 2 * C}),
        dweight({C}), dbias({C}), dscale_shift({N, 2 * C}), mean({N, 32}), rstd({N, 32});
    const GroupNormOptions options{32, 1e-5, key[3] != 0};
    const double bytes = 4.0 * static_cast<double>(x.shape.numel());
    const std::string shape = fmt::format("{} positions of {}{}{}", P, C, scaled ? ", scale" : "",
                                          key[3] ? ", silu" : "");
    const ConstView scale = scaled ? ConstView(scale_shift) : ConstView{};
    // Each reads its inputs and writes its output once at least.
    table.row("group_norm", shape, count, 2 * bytes, true,
              [&] { cpu.group_norm(x, weight, bias, scale, options, out, mean, rstd); });
    table.row("group_norm_backward", shape, count, 3 * bytes, true, [&] {
      cpu.group_norm_backward(x, weight, bias, scale, mean, rstd, options, out, dx, dweight, dbias,
                              scaled ? View(dscale_shift) : View{});
    });
  }
}

}  // namespace
}  // namespace mutilde::bench

int main(int argc, char** argv) {
  std::string only;
  std::vector<std::string> words;
  for (const std::string& argument : std::vector<std::string>(argv + 1, argv + argc)) {
    bool is_preset = false;
    for (const auto& preset : mutilde::bench::kPresets) is_preset |= argument == preset.name;
    if (is_preset) {
      only = argument;
    } else {
      words.push_back(argument);
    }
  }
  for (const auto& preset : mutilde::bench::kPresets) {
    if (only.empty() || only == preset.name) mutilde::bench::measure(preset, words);
  }
}
