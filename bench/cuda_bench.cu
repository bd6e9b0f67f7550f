// The ladder on this machine's GPU: TFLOP/s of each rung on a matrix product and on a convolution and
// its gradients, and a step of training of each preset. scripts/gpu_check.sh runs it. With --layers: the
// convolutions of the cifar preset.
#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

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

struct NamedRung {
  const char* name;
  cuda::Rung rung;
  Precision precision = Precision::kFloat32;
  DType dtype = DType::kFloat32;
};
constexpr NamedRung kRungs[] = {
    {"float32, plain", cuda::Rung::kPlain},
    {"float32, tiled", cuda::Rung::kTiled},
    {"float32 rounded to tf32, wmma", cuda::Rung::kTensorCores},
    {"bfloat16, wmma", cuda::Rung::kTensorCores, Precision::kBfloat16, DType::kBFloat16},
    {"bfloat16, wgmma and TMA", cuda::Rung::kHopper, Precision::kBfloat16, DType::kBFloat16}};

/// Calls measure(backend, rung) for each rung that this GPU has.
void for_rungs(const std::function<void(Backend&, const NamedRung&)>& measure) {
  for (const NamedRung& rung : kRungs) {
    if (rung.rung == cuda::Rung::kHopper && !cuda::is_hopper()) continue;
    set_product_precision(rung.precision);
    cuda::CudaBackend backend(0, rung.rung);
    measure(backend, rung);
  }
  set_product_precision(Precision::kFloat32);
}

void measure_matmul() {
  constexpr int n = 4096;
  constexpr double kOperations = 2.0 * n * n * n;
  const std::string name = fmt::format("matmul {0} x {0} x {0}", n);
  const Tensor a = random({1, n, n}), b = random({1, n, n});
  for_rungs([&](Backend& backend, const NamedRung& rung) {
    const Tensor in_a = a.to(rung.dtype), in_b = b.to(rung.dtype), out = in_a.clone();
    print_row(name.c_str(), rung.name, kOperations,
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

void measure_conv(const Layer& layer) {
  for_rungs([&](Backend& backend, const NamedRung& rung) {
    run_layer(backend, layer, rung.dtype, [&](const char* what, const auto& call) {
      const std::string name =
          fmt::format("conv {0}x{0}, stride {1}, {2} x {3}x{3}, {4} channels, {5}", layer.kernel,
                      layer.stride, layer.N, layer.size, layer.C, what);
      print_row(name.c_str(), rung.name, layer.operations(), call);
    });
  });
}

/// The convolutions of the cifar preset at a batch of 128, in the way that the library picks: a line each,
/// which bench/cuda_layers.py sets beside PyTorch's.
void measure_layers() {
  constexpr Layer kLayers[] = {
      {128, 32, 128, 128, 3, 1}, {128, 32, 256, 128, 3, 1}, {128, 32, 256, 128, 1, 1},
      {128, 32, 384, 128, 3, 1}, {128, 32, 128, 128, 3, 2}, {128, 16, 256, 256, 3, 1},
      {128, 16, 512, 256, 3, 1}, {128, 16, 512, 256, 1, 1}, {128, 16, 256, 256, 3, 2},
      {128, 8, 256, 256, 3, 1},  {128, 8, 512, 256, 3, 1},  {128, 4, 256, 256, 3, 1},
      {128, 4, 512, 256, 3, 1},  {128, 32, 3, 128, 3, 1}};
  set_product_precision(Precision::kBfloat16);
  cuda::CudaBackend backend(0, cuda::Rung::kAutomatic);
  for (const Layer& layer : kLayers) {
    run_layer(backend, layer, DType::kBFloat16, [&](const char* what, const auto& call) {
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

void measure_training(const char* preset, int64_t batch) {
  Settings settings;
  apply_preset(settings, preset);
  settings.batch_size = batch;
  Trainer trainer(settings, Device::cuda());
  const Tensor x_0 =
      random({batch, settings.image_size, settings.image_size, settings.image_channels});
  for (const bool bfloat16 : {false, true}) {
    set_product_precision(bfloat16 ? Precision::kBfloat16 : Precision::kFloat32);
    const double ms = step_ms(trainer, x_0);
    fmt::print("| {} | {} | {} | {:.2f} | {:.1f} |\n", preset, batch,
               bfloat16 ? "bfloat16" : "float32", ms, 1e3 * batch / ms);
  }
  set_product_precision(Precision::kFloat32);
}

void measure_all() {
  cudaDeviceProp gpu{};
  check(cudaGetDeviceProperties(&gpu, 0), "cudaGetDeviceProperties");
  fmt::print("{}, compute capability {}.{}, {} multiprocessors\n\n", gpu.name, gpu.major, gpu.minor,
             gpu.multiProcessorCount);
  fmt::print("| product | rung | ms | TFLOP/s |\n|---|---|---|---|\n");
  measure_matmul();
  measure_conv({32, 32, 128, 128, 3, 1});
  measure_conv({32, 32, 128, 128, 3, 2});
  measure_conv({32, 32, 128, 128, 1, 1});
  fmt::print("\n| training step | batch | products | ms | images/s |\n|---|---|---|---|---|\n");
  measure_training("small", 128);
  measure_training("medium", 128);
  measure_training("cifar", 128);
}

}  // namespace
}  // namespace mutilde::bench

int main(int count, char** arguments) {
  const mutilde::CudaDevices gpus = mutilde::use_cuda();
  if (gpus.count == 0) {
    fmt::print(stderr, "cuda_bench: {}\n", gpus.why_none);
    return 1;
  }
  if (count == 2 && std::string_view(arguments[1]) == "--layers") {
    mutilde::bench::measure_layers();
  } else {
    mutilde::bench::measure_all();
  }
}
