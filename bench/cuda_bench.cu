// The ladder on this machine's GPU: TFLOP/s of each rung on a matrix product and on a convolution and
// its gradients, and a step of training of each preset. scripts/gpu_check.sh runs it.
#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <fmt/format.h>

#include "cuda/cuda_backend.h"
#include "cuda/devices.h"
#include "cuda/hopper/hopper.h"
#include "cuda/launch.h"
#include "diffusion/trainer.h"

namespace mutilde::bench {
namespace {

using cuda::check;

/// Milliseconds of a call: the median of at least 5 and as many as fill 0.2 s, after one that warms
/// up.
double median_ms(const std::function<void()>& call) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  call();
  std::vector<float> times;
  for (float total = 0; total < 200 || times.size() < 5; total += times.back()) {
    check(cudaEventRecord(begin), "cudaEventRecord");
    call();
    check(cudaEventRecord(end), "cudaEventRecord");
    check(cudaEventSynchronize(end), "cudaEventSynchronize");
    check(cudaEventElapsedTime(&times.emplace_back(), begin, end), "cudaEventElapsedTime");
  }
  check(cudaEventDestroy(begin), "cudaEventDestroy");
  check(cudaEventDestroy(end), "cudaEventDestroy");
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

void print_row(const char* what, const char* rung, double operations,
               const std::function<void()>& call) {
  const double ms = median_ms(call);
  fmt::print("| {} | {} | {:.3f} | {:.2f} |\n", what, rung, ms, operations / ms * 1e-9);
}

Tensor random(const Shape& shape, DType dtype = DType::kFloat32) {
  static Generator generator(1);
  return generator.normal(shape).to(dtype).to(Device::cuda());
}

/// The short type that is measured.
struct Short {
  Precision precision;
  DType dtype;
};

struct NamedRung {
  std::string name;
  cuda::Rung rung;
  Precision precision = Precision::kFloat32;
  DType dtype = DType::kFloat32;
};
std::vector<NamedRung> rungs(const Short& type) {
  const std::string name = name_of(type.dtype);
  return {{"float32, plain", cuda::Rung::kPlain},
          {"float32, tiled", cuda::Rung::kTiled},
          {"float32 rounded to tf32, wmma", cuda::Rung::kWmma},
          {name + ", wmma", cuda::Rung::kWmma, type.precision, type.dtype},
          {name + ", mma", cuda::Rung::kMma, type.precision, type.dtype},
          {name + ", wgmma and TMA", cuda::Rung::kHopper, type.precision, type.dtype}};
}

/// Calls measure(backend, rung) for each rung that this GPU has.
void for_rungs(const Short& type, const std::function<void(Backend&, const NamedRung&)>& measure) {
  for (const NamedRung& rung : rungs(type)) {
    if (rung.rung == cuda::Rung::kHopper && !cuda::is_hopper()) continue;
    set_product_precision(rung.precision);
    cuda::CudaBackend backend(0, rung.rung);
    measure(backend, rung);
  }
  set_product_precision(Precision::kFloat32);
}

void measure_matmul(const Short& type) {
  constexpr int n = 4096;
  constexpr double kOperations = 2.0 * n * n * n;
  const std::string name = fmt::format("matmul {0} x {0} x {0}", n);
  const Tensor a = random({1, n, n}), b = random({1, n, n});
  for_rungs(type, [&](Backend& backend, const NamedRung& rung) {
    const Tensor in_a = a.to(rung.dtype), in_b = b.to(rung.dtype), out = in_a.clone();
    print_row(name.c_str(), rung.name.c_str(), kOperations,
              [&] { backend.matmul(in_a, false, in_b, false, out); });
  });
}

struct Layer {
  int64_t N, size, C, C_out, kernel, stride;

  int64_t size_out() const { return size / stride; }
  double operations() const {
    return 2.0 * static_cast<double>(N * size_out() * size_out() * C_out * kernel * kernel * C);
  }
};

/// A convolution and its two gradients: report(what, call) for each.
void run_layer(Backend& backend, const Layer& layer, DType dtype,
               const std::function<void(const char*, const std::function<void()>&)>& report) {
  const Tensor x = random({layer.N, layer.size, layer.size, layer.C}, dtype);
  const Tensor weight = random({layer.C_out, layer.kernel, layer.kernel, layer.C});
  const Tensor bias = random({layer.C_out}), dweight = weight.clone(), dx = x.clone();
  const Tensor dout = random({layer.N, layer.size_out(), layer.size_out(), layer.C_out}, dtype);
  const Tensor out = dout.clone();
  const Conv2dGeometry geometry{layer.stride, layer.kernel / 2};
  report("forward", [&] { backend.conv2d(x, weight, bias, {}, geometry, out); });
  report("input gradient", [&] { backend.conv2d_backward_input(dout, weight, geometry, dx); });
  report("weight gradient", [&] { backend.conv2d_backward_weight(x, dout, geometry, dweight); });
}

void measure_conv(const Short& type, const Layer& layer) {
  for_rungs(type, [&](Backend& backend, const NamedRung& rung) {
    run_layer(backend, layer, rung.dtype, [&](const char* what, const auto& call) {
      const std::string name =
          fmt::format("conv {0}x{0}, stride {1}, {2} x {3}x{3}, {4} channels, {5}", layer.kernel,
                      layer.stride, layer.N, layer.size, layer.C, what);
      print_row(name.c_str(), rung.name.c_str(), layer.operations(), call);
    });
  });
}

/// The convolutions of the cifar preset at a batch of 128, in the way that the library picks: a line each,
/// which bench/cuda_layers.py sets beside PyTorch's.
void measure_layers(const Short& type) {
  constexpr Layer kLayers[] = {
      {128, 32, 128, 128, 3, 1}, {128, 32, 256, 128, 3, 1}, {128, 32, 256, 128, 1, 1},
      {128, 32, 384, 128, 3, 1}, {128, 32, 128, 128, 3, 2}, {128, 16, 256, 256, 3, 1},
      {128, 16, 512, 256, 3, 1}, {128, 16, 512, 256, 1, 1}, {128, 16, 256, 256, 3, 2},
      {128, 8, 256, 256, 3, 1},  {128, 8, 512, 256, 3, 1},  {128, 4, 256, 256, 3, 1},
      {128, 4, 512, 256, 3, 1},  {128, 32, 3, 128, 3, 1}};
  set_product_precision(type.precision);
  cuda::CudaBackend backend(0, cuda::Rung::kAutomatic);
  for (const Layer& layer : kLayers) {
    run_layer(backend, layer, type.dtype, [&](const char* what, const auto& call) {
      fmt::print("{} {} {} {} {} {} | {} | {:.4f}\n", layer.N, layer.size, layer.C, layer.C_out,
                 layer.kernel, layer.stride, what, median_ms(call));
    });
  }
}

/// Milliseconds of a step of training among others, as the app does them: the host is a step ahead of
/// the GPU and waits for no other numbers. The mean over a second, after three that warm up.
double step_ms(Trainer& trainer, const Tensor& x_0) {
  using Clock = std::chrono::steady_clock;
  const auto run = [&](double seconds, int least) {
    trainer.settle();
    const auto begin = Clock::now();
    int steps = 0;
    const auto passed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
    for (; steps < least || passed() < seconds; ++steps) trainer.start_step(x_0, {});
    trainer.settle();
    trainer.take_reports();
    return 1e3 * passed() / steps;
  };
  run(0, 3);
  return run(1, 5);
}

void measure_training(const Short& type, const char* preset, int64_t batch) {
  Settings settings;
  apply_preset(settings, preset);
  settings.batch_size = batch;
  Trainer trainer(settings, Device::cuda());
  const Tensor x_0 =
      random({batch, settings.image_size, settings.image_size, settings.image_channels});
  for (const Precision precision : {Precision::kFloat32, type.precision}) {
    set_product_precision(precision);
    if (precision == Precision::kFloat16) trainer.scale_losses();
    const double ms = step_ms(trainer, x_0);
    fmt::print("| {} | {} | {} | {:.2f} | {:.1f} |\n", preset, batch,
               name_of(factor_dtype(DType::kFloat32)), ms, 1e3 * batch / ms);
  }
  set_product_precision(Precision::kFloat32);
}

void measure_all(const Short& type) {
  cudaDeviceProp gpu{};
  check(cudaGetDeviceProperties(&gpu, 0), "cudaGetDeviceProperties");
  fmt::print("{}, compute capability {}.{}, {} multiprocessors\n\n", gpu.name, gpu.major, gpu.minor,
             gpu.multiProcessorCount);
  fmt::print("| product | rung | ms | TFLOP/s |\n|---|---|---|---|\n");
  measure_matmul(type);
  measure_conv(type, {32, 32, 128, 128, 3, 1});
  measure_conv(type, {32, 32, 128, 128, 3, 2});
  measure_conv(type, {32, 32, 128, 128, 1, 1});
  fmt::print("\n| training step | batch | products | ms | images/s |\n|---|---|---|---|---|\n");
  measure_training(type, "small", 128);
  measure_training(type, "medium", 128);
  measure_training(type, "cifar", 128);
}

}  // namespace
}  // namespace mutilde::bench

int main(int count, char** arguments) {
  using namespace mutilde;
  CLI::App command("The ladder and steps of training on this machine's GPU");
  bool layers = false;
  command.add_flag("--layers", layers, "The convolutions of the cifar preset instead");
  bench::Short type{Precision::kBfloat16, DType::kBFloat16};
  command
      .add_option_function<std::string>(
          "--precision",
          [&](const std::string& name) {
            if (name == "fp16") type = {Precision::kFloat16, DType::kFloat16};
          },
          "The short type that is measured")
      ->check(CLI::IsMember({"bf16", "fp16"}));
  CLI11_PARSE(command, count, arguments);
  const CudaDevices gpus = use_cuda();
  if (gpus.count == 0) {
    fmt::print(stderr, "cuda_bench: {}\n", gpus.why_none);
    return 1;
  }
  layers ? bench::measure_layers(type) : bench::measure_all(type);
}
