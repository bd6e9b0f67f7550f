// What only an emulated device can show of the backend: faults of the machine, and that no kernel
// depends on the order of its threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/op_cases.h"
#include "cuda/devices.h"
#include "tests/cuda/emulation/fault_testing.h"

namespace mutilde::emulation {
namespace {

using testing::HasSubstr;

template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(CudaDevices, WithoutADriverOrAGpuTheReasonIsSaid) {
  const OptionsScope scope;
  options().device_error = cudaErrorInsufficientDriver;
  EXPECT_EQ(use_cuda().count, 0);
  EXPECT_THAT(use_cuda().why_none, HasSubstr("no NVIDIA driver"));
  options().device_error = cudaErrorNoDevice;
  EXPECT_THAT(use_cuda().why_none, HasSubstr("no NVIDIA GPU"));
}

TEST(CudaMemory, OutOfMemorySaysWhatWasAskedAndWhatIsFree) {
  const OptionsScope scope;
  options().memory_bytes = size_t{64} << 20;
  use_cuda();
  const auto allocate = [](int64_t n) {
    return error_of([&] { Tensor::empty({n}, DType::kUInt8, Device::cuda()); });
  };
  EXPECT_EQ(allocate(63 << 20), "no error");
  EXPECT_THAT(allocate(65 << 20),
              HasSubstr("cuda:0 is out of memory: 65.0 MiB asked, 64.0 MiB free of 64.0 MiB"));
}

/// What a row's op gives, forward and backward, in float32.
std::vector<std::vector<double>> results_of(const OpCase& row) {
  Tensors inputs;
  for (const Tensor& input : row.inputs) {
    const bool floating = is_floating(input.dtype());
    Tensor x = input.to(floating ? DType::kFloat32 : input.dtype()).to(Device::cuda()).clone();
    if (floating && row.differentiable) x.set_requires_grad(true);
    inputs.push_back(x);
  }
  const Tensor out = row.op(inputs);
  std::vector<std::vector<double>> results{out.to_vector<double>()};
  if (!row.differentiable) return results;
  out.backward(uniform(out.shape(), -1, 1, 99).to(out.dtype()).to(out.device()));
  for (const Tensor& input : inputs) {
    if (input.requires_grad()) results.push_back(input.grad().to_vector<double>());
  }
  return results;
}

// A missing barrier shows in one of the orders.
TEST(CudaKernels, GiveTheSameInBothOrdersOfTheirThreads) {
  use_cuda();
  for (const OpCase& row : op_cases()) {
    const OptionsScope scope;
    options().order = Order::kForward;
    const auto forward = results_of(row);
    options().order = Order::kReverse;
    EXPECT_EQ(results_of(row), forward) << row.name;
  }
}

}  // namespace
}  // namespace mutilde::emulation
