// The ladder on this machine's GPU: TFLOP/s of each rung on a matrix product and on a convolution and
// its gradients, and a step of training of each preset. scripts/gpu_check.sh runs it.
#include <algorithm>
#include <functional>
#include <vector>

#include <fmt/format.h>

#include "cuda/cuda_backend.h"
#include "cuda/devices.h"
#include "cuda/hopper/hopper.h"
#include "cuda/launch.h"
#include "cuda/matmul_ladder.h"
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
};
constexpr NamedRung kRungs[] = {
    {"float32, plain", cuda::Rung::kPlain},
    {"float32, tiled", cuda::Rung::kTiled},
    {"float32 rounded to tf32, wmma", cuda::Rung::kTensorCores},
    {"float32 rounded to bfloat16, wmma", cuda::Rung::kTensorCores, Precision::kBfloat16},
    {"float32 rounded to bfloat16, wgmma and TMA", cuda::Rung::kHopper, Precision::kBfloat16}};

/// Calls measure(backend, name) for each rung that this GPU has.
void for_rungs(const std::function<void(Backend&, const char*)>& measure) {
  for (const NamedRung& named : kRungs) {
    if (named.rung == cuda::Rung::kHopper && !cuda::is_hopper()) continue;
    set_product_precision(named.precision);
    cuda::CudaBackend backend(0, named.rung);
    measure(backend, named.name);
  }
  set_product_precision(Precision::kFloat32);
}

void measure_matmul() {
  constexpr int n = 4096;
  constexpr double kOperations = 2.0 * n * n * n;
  const std::string name = fmt::format("matmul {0} x {0} x {0}", n);
  const Tensor a = random({1, n, n}), b = random({1, n, n}), out = random({1, n, n});
  for_rungs([&](Backend& backend, const char* rung) {
    print_row(name.c_str(), rung, kOperations, [&] { backend.matmul(a, false, b, false, out); });
  });
  const Tensor short_a = a.to(DType::kBFloat16), short_b = b.to(DType::kBFloat16);
  const auto ladder = [&](const char* rung_name, auto multiply) {
    print_row(name.c_str(), rung_name, kOperations, [&] {
      multiply(static_cast<const __nv_bfloat16*>(short_a.raw()),
               static_cast<const __nv_bfloat16*>(short_b.raw()), static_cast<float*>(out.raw()), n,
               n, n, nullptr);
    });
  };
  ladder("bfloat16, wmma", cuda::matmul_wmma);
  if (cuda::is_hopper()) ladder("bfloat16, wgmma and TMA", cuda::matmul_wgmma);
}

void measure_conv(int64_t N, int64_t size, int64_t C, int64_t kernel, int64_t stride) {
  const int64_t size_out = size / stride;
  const Tensor x = random({N, size, size, C}), weight = random({C, kernel, kernel, C});
  const Tensor bias = random({C}), dout = random({N, size_out, size_out, C});
  const Tensor out = dout.clone(), dx = x.clone(), dweight = weight.clone();
  const Conv2dGeometry geometry{stride, kernel / 2};
  const double operations = 2.0 * static_cast<double>(out.numel() * kernel * kernel * C);
  const std::string shape =
      fmt::format("{0}x{0}, stride {1}, {2} x {3}x{3}, {4} channels", kernel, stride, N, size, C);
  for_rungs([&](Backend& backend, const char* rung) {
    print_row(("conv " + shape).c_str(), rung, operations,
              [&] { backend.conv2d(x, weight, bias, geometry, out); });
    print_row("gradient of its input", rung, operations,
              [&] { backend.conv2d_backward_input(dout, weight, geometry, dx); });
    print_row("gradient of its weight", rung, operations,
              [&] { backend.conv2d_backward_weight(x, dout, geometry, dweight); });
  });
  if (!cuda::is_hopper()) return;
  const auto of = [](int64_t n) { return static_cast<int>(n); };
  const cuda::ConvSizes s{of(size), of(size),   of(C),      of(size_out), of(size_out),
                          of(C),    of(kernel), of(kernel), of(stride),   of(kernel / 2)};
  const Tensor short_x = x.to(DType::kBFloat16), short_weight = weight.to(DType::kBFloat16);
  print_row(("conv " + shape).c_str(), "bfloat16, wgmma and TMA", operations, [&] {
    cuda::conv2d_wgmma(s, of(N), static_cast<const __nv_bfloat16*>(short_x.raw()),
                       static_cast<const __nv_bfloat16*>(short_weight.raw()),
                       static_cast<const float*>(bias.raw()), static_cast<float*>(out.raw()),
                       nullptr);
  });
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
    const double ms = median_ms([&] { trainer.step(x_0, {}); });
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
  measure_conv(32, 32, 128, 3, 1);
  measure_conv(32, 32, 128, 3, 2);
  measure_conv(32, 32, 128, 1, 1);
  fmt::print("\n| training step | batch | products | ms | images/s |\n|---|---|---|---|---|\n");
  measure_training("small", 128);
  measure_training("medium", 128);
  measure_training("cifar", 128);
}

}  // namespace
}  // namespace mutilde::bench

int main() {
  const mutilde::CudaDevices gpus = mutilde::use_cuda();
  if (gpus.count == 0) {
    fmt::print(stderr, "cuda_bench: {}\n", gpus.why_none);
    return 1;
  }
  mutilde::bench::measure_all();
}
