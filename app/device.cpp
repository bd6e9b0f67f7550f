#include "app/device.h"

#include <charconv>

#include "app/command_line.h"
#include "app/progress.h"
#include "core/backend.h"
#include "core/cpu_isa.h"
#include "core/precision.h"
#include "cuda/devices.h"

namespace mutilde::app {

namespace {

/// The number behind "cuda:", or 0 for "cuda"; -1 if the text is neither.
int gpu_index(const std::string& text) {
  if (text == "cuda") return 0;
  if (!text.starts_with("cuda:")) return -1;
  int index = -1;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data() + 5, end, index);
  return parsed.ec == std::errc() && parsed.ptr == end ? index : -1;
}

}  // namespace

Device find_device(const std::string& text) {
  if (text == "cpu") return Device::cpu();
  const CudaDevices gpus = use_cuda();
  if (text == "auto") return gpus.count > 0 ? Device::cuda() : Device::cpu();
  const int index = gpu_index(text);
  if (index < 0) fail<UsageError>("--device: '{}' is none of: auto, cpu, cuda, cuda:N", text);
  if (gpus.count == 0) fail<UsageError>("--device {}: {}", text, gpus.why_none);
  if (index >= gpus.count) {
    fail<UsageError>("--device {}: there is no such GPU; there {}", text,
                     gpus.count == 1
                         ? "is one, cuda:0"
                         : fmt::format("are {}, cuda:0 to cuda:{}", gpus.count, gpus.count - 1));
  }
  return Device::cuda(index);
}

void use_precision(const std::string& text, Device device) {
  if (text == "fp16" && !backend(device).has_kernels_for(DType::kFloat16)) {
    fail<UsageError>(
        "--precision fp16: {} has no kernels for float16, a GPU has (--device cuda); "
        "here there are fp32 and bf16",
        device.to_string());
  }
  set_product_precision(text == "bf16"   ? Precision::kBfloat16
                        : text == "fp16" ? Precision::kFloat16
                                         : Precision::kFloat32);
  if (text == "bf16" && device == Device::cpu() && !cpu_isa().kernels->has_bf16) {
    note(fmt::format(
        "--precision bf16: this processor has no instruction for it (AVX512_BF16), which makes "
        "it slower than fp32\n"));
  }
}

}  // namespace mutilde::app
