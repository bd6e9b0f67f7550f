// The app's --device and --precision, on a machine with one GPU, and on one whose GPU cannot be used.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "app/command_line.h"
#include "app/device.h"
#include "core/precision_scope.h"
#include "tests/cuda/emulation/fault_testing.h"

namespace mutilde::app {
namespace {

using emulation::options;
using emulation::OptionsScope;
using testing::HasSubstr;

std::string refusal(const std::string& text) {
  try {
    find_device(text);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no refusal";
}

TEST(DeviceFlag, NamesTheCpuOrAGpuOrWhatThereIs) {
  EXPECT_EQ(find_device("cpu"), Device::cpu());
  EXPECT_EQ(find_device("cuda"), Device::cuda(0));
  EXPECT_EQ(find_device("cuda:0"), Device::cuda(0));
  EXPECT_EQ(find_device("auto"), Device::cuda(0));
  const OptionsScope scope;
  options().device_error = cudaErrorNoDevice;
  EXPECT_EQ(find_device("auto"), Device::cpu());
}

TEST(DeviceFlag, AGpuThatIsNotThereIsRefusedWithTheReason) {
  EXPECT_THAT(refusal("cuda:1"),
              HasSubstr("--device cuda:1: there is no such GPU; there is one, cuda:0"));
  const OptionsScope scope;
  options().device_error = cudaErrorInsufficientDriver;
  EXPECT_THAT(refusal("cuda"), HasSubstr("--device cuda: there is no NVIDIA driver"));
  options().device_error = cudaErrorNoDevice;
  EXPECT_THAT(refusal("cuda:0"), HasSubstr("--device cuda:0: there is no NVIDIA GPU"));
}

TEST(DeviceFlag, AGpuThatIsTooOldForTheKernelsIsNotTaken) {
  const OptionsScope scope;
  options().capability = 75;
  EXPECT_EQ(find_device("auto"), Device::cpu());
  EXPECT_THAT(refusal("cuda"),
              HasSubstr("--device cuda: the GPU has compute capability 7.5, and the "
                        "kernels want 8.0 at least"));
  options().capability = 121;
  EXPECT_EQ(find_device("auto"), Device::cuda(0));
}

TEST(DeviceFlag, OtherTextsAreRefused) {
  for (const char* text : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:0x1", "cpu:0"}) {
    EXPECT_THAT(refusal(text), HasSubstr("none of: auto, cpu, cuda, cuda:N")) << text;
  }
}

TEST(PrecisionFlag, Float16IsForADeviceThatHasKernelsForIt) {
  const PrecisionScope scope(Precision::kFloat32);
  use_precision("bf16", find_device("cuda"));
  EXPECT_EQ(product_precision(), Precision::kBfloat16);
  use_precision("fp16", find_device("cuda"));
  EXPECT_EQ(product_precision(), Precision::kFloat16);
  EXPECT_THROW(use_precision("fp16", Device::cpu()), UsageError);
  EXPECT_EQ(product_precision(), Precision::kFloat16);
  use_precision("fp32", Device::cpu());
  EXPECT_EQ(product_precision(), Precision::kFloat32);
}

}  // namespace
}  // namespace mutilde::app
