// What only an emulated device can show of the backend: faults of the machine, and that no kernel
// depends on the order of its threads.
#include <cstdlib>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/op_cases.h"
#include "core/precision_scope.h"
#include "cuda/cuda_backend.h"
#include "cuda/devices.h"
#include "cuda/emulation/grid.h"
#include "tests/cuda/emulation/fault_testing.h"
#include "tests/cuda/short_types.h"
#include "tests/cuda/tiny_training.h"

namespace mutilde::emulation {
namespace {

using testing::HasSubstr;

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

TEST(CudaMemory, WithoutPinnedMemoryCopiesGoThroughOther) {
  const OptionsScope scope;
  options().pinned_bytes = 0;
  use_cuda();
  const Tensor x = uniform({3, 5}, -1, 1, 1).to(DType::kFloat32), there = x.to(Device::cuda());
  EXPECT_EQ(there.to_vector<float>(), x.to_vector<float>());
  const Tensor back = Tensor::zeros({3, 5});
  backend(there).start_copy_to_host(there.raw(), back.raw(), there.bytes())();
  EXPECT_EQ(back.to_vector<float>(), x.to_vector<float>());
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

using Results = std::vector<std::vector<double>>;

/// What results() gives in both orders.
void expect_same_in_both_orders(const std::string& name, const std::function<Results()>& results) {
  const OptionsScope scope;
  options().order = Order::kForward;
  const Results forward = results();
  options().order = Order::kReverse;
  const Results reverse = results();
  ASSERT_EQ(reverse.size(), forward.size()) << name;
  for (size_t r = 0; r < forward.size(); ++r) {
    const auto [a, b] = std::ranges::mismatch(reverse[r], forward[r]);
    if (a == reverse[r].end() && b == forward[r].end()) continue;
    ADD_FAILURE() << name << ": element " << a - reverse[r].begin() << " of its "
                  << (r == 0 ? "result" : "gradients") << " is " << *a
                  << " in the reverse order of threads and " << *b
                  << " in the other: a barrier is missing, or two threads write it";
    return;
  }
}

// A missing barrier shows in one of the orders.
TEST(CudaKernels, GiveTheSameInBothOrdersOfTheirThreads) {
  use_cuda();
  for (const OpCase& row : op_cases())
    expect_same_in_both_orders(row.name, [&] { return results_of(row); });
}

TEST(CudaKernels, OnShortTypesGiveTheSameInBothOrdersOfTheirThreads) {
  use_cuda();
  for (const ShortType& type : kShortTypes) {
    for (const ShortCase& row : short_cases()) {
      const std::string name = row.name + " of " + row.inputs[0].shape.to_string() + ", " +
                               std::string(name_of(type.dtype));
      expect_same_in_both_orders(name, [&] {
        Results results;
        for (const Tensor& one : results_of(row, type.dtype, true))
          results.push_back(one.to_vector<double>());
        return results;
      });
    }
  }
}

// And of all kernels of a step together.
TEST(CudaTrainer, AStepGivesTheSameInBothOrdersOfTheThreads) {
  use_cuda();
  const auto check = [](Precision precision, bool hopper) {
    const PrecisionScope precision_scope(precision);
    const OptionsScope scope;
    options().hopper = hopper;
    expect_same_in_both_orders("a step", [&] {
      Trainer trainer(tiny_settings(), Device::cuda());
      if (precision == Precision::kFloat16) trainer.scale_losses(10);
      randomise(trainer.unet());
      const Images batch = images(1);
      const StepReport report = trainer.step(batch.x_0, batch.y);
      Results results = state_of(trainer);
      results.insert(results.begin(), {report.loss, report.grad_norm});
      return results;
    });
  };
  check(Precision::kFloat32, false);
  check(Precision::kBfloat16, false);
  check(Precision::kFloat16, true);
}

// The table of ops runs on the rung that the library picks. Several steps along k each, so that stages are used again.
TEST(CudaKernels, OfEachRungGiveTheSameInBothOrdersOfTheirThreads) {
  use_cuda();
  const auto check = [](cuda::Rung rung, Precision precision, int64_t C, int64_t C_out) {
    const PrecisionScope scope(precision);
    const auto make = [](const Shape& shape) {
      return uniform(shape).to(DType::kFloat32).to(Device::cuda());
    };
    const Tensor x = make({1, 9, 7, C}), weight = make({C_out, 3, 3, C});
    cuda::CudaBackend backend(0, rung);
    const OptionsScope options_scope;
    options().hopper = rung == cuda::Rung::kHopper;
    expect_same_in_both_orders("a convolution", [&] {
      const Tensor out = Tensor::empty({1, 9, 7, C_out}, DType::kFloat32, Device::cuda());
      const Tensor dx = Tensor::empty(x.shape(), DType::kFloat32, Device::cuda());
      const Tensor dweight = Tensor::empty(weight.shape(), DType::kFloat32, Device::cuda());
      backend.conv2d(x, weight, {}, {}, {1, 1}, out);
      backend.conv2d_backward_input(out, weight, {1, 1}, dx);
      backend.conv2d_backward_weight(x, out, {1, 1}, dweight);
      return Results{out.to_vector<double>(), dx.to_vector<double>(), dweight.to_vector<double>()};
    });
  };
  using cuda::Rung;
  check(Rung::kPlain, Precision::kFloat32, 5, 67);
  check(Rung::kWmma, Precision::kFloat32, 5, 67);
  check(Rung::kMma, Precision::kBfloat16, 40, 136);
  check(Rung::kHopper, Precision::kBfloat16, 40, 136);
}

/// The kernel that multiplies two matrices on a backend made under MUTILDE_CUDA_RUNG=name.
std::string product_kernel(const char* name, DType dtype = DType::kFloat32) {
  use_cuda();
  // Also where it throws: programs that a death test starts have the environment too.
  struct Environment {
    explicit Environment(const char* value) { setenv("MUTILDE_CUDA_RUNG", value, 1); }
    ~Environment() { unsetenv("MUTILDE_CUDA_RUNG"); }
  };
  cuda::CudaBackend backend = [&] {
    const Environment environment(name);
    return cuda::CudaBackend(0);
  }();
  const Tensor a = Tensor::zeros({1, 2, 2}, dtype, Device::cuda()), out = a.clone();
  backend.matmul(a, false, a, false, out);
  return std::string(last_kernel());
}

TEST(CudaRungs, TheEnvironmentForcesOne) {
  EXPECT_THAT(product_kernel("plain"), HasSubstr("plain_product"));
  EXPECT_THAT(product_kernel("tiled"), HasSubstr("tiled_product"));
  EXPECT_THAT(product_kernel("wmma"), HasSubstr("wmma_product"));
  EXPECT_THAT(product_kernel("auto"), HasSubstr("tiled_product"));
  EXPECT_THAT(product_kernel("wmma", DType::kFloat64), HasSubstr("tiled_product"));
  for (const Precision short_factors : {Precision::kBfloat16, Precision::kFloat16}) {
    const PrecisionScope precision(short_factors);
    EXPECT_THAT(product_kernel("auto"), HasSubstr("wmma_product"));
    EXPECT_THAT(product_kernel("auto", DType::kFloat64), HasSubstr("tiled_product"));
    EXPECT_THAT(product_kernel("plain"), HasSubstr("plain_product"));
    // A 2 x 2 is too small for them.
    EXPECT_THAT(product_kernel("mma"), HasSubstr("wmma_product"));
    EXPECT_THAT(product_kernel("wgmma"), HasSubstr("wmma_product"));
  }
  EXPECT_THAT(
      error_of([] { product_kernel("fast"); }),
      HasSubstr("MUTILDE_CUDA_RUNG is 'fast': auto, plain, tiled, wmma, mma or wgmma expected"));
}

// Products, of a weight with 8 channels and with 7, take the best rung, and what that does not take goes to wmma.
void expect_best_rung(const std::string& product, const std::string& weight_gradient) {
  cuda::CudaBackend backend(0, cuda::Rung::kAutomatic);
  const auto on_gpu = [](const Shape& shape) {
    return Tensor::zeros(shape, DType::kFloat32, Device::cuda());
  };
  for (const int64_t C : {8, 7}) {
    const Tensor x = on_gpu({1, 3, 3, C}), weight = on_gpu({8, 3, 3, C}),
                 out = on_gpu({1, 3, 3, 8});
    const auto expect_kernel = [&](const std::string& of_8, const std::string& of_7) {
      const std::string kernel = "::" + std::string(last_kernel()),
                        name = "::" + (C == 8 ? of_8 : of_7);
      // Of a template clang names no arguments.
      EXPECT_TRUE(kernel.ends_with(name) || kernel.find(name + "<") != kernel.npos)
          << kernel << ", not " << name;
    };
    backend.conv2d(x, weight, {}, {}, {1, 1}, out);
    expect_kernel(product, product);  // x with an eighth channel of zeros
    backend.conv2d_backward_input(out, weight, {1, 1}, x);
    expect_kernel(product, "wmma_product");
    backend.conv2d_backward_weight(x, out, {1, 1}, weight);
    expect_kernel(weight_gradient, "for_each");  // all but the eighth
    const Tensor rows = on_gpu({1, 5, C}), right = on_gpu({1, C, 8}), sums = on_gpu({1, 5, 8});
    backend.matmul(rows, false, right, false, sums);
    expect_kernel(product, "wmma_product");
    backend.matmul(rows, true, sums, false, right);
    expect_kernel(weight_gradient, "wmma_product");
    backend.matmul(sums, false, right, true, rows);
    expect_kernel(product, "wmma_product");
  }
}

TEST(CudaRungs, TheBestThatTakesTheSizesIsPicked) {
  use_cuda();
  const PrecisionScope precision(Precision::kFloat16);
  const OptionsScope scope;
  options().hopper = true;
  expect_best_rung("conv", "conv_backward_weight");
  options().hopper = false;
  expect_best_rung("mma::product", "mma::product");
}

}  // namespace
}  // namespace mutilde::emulation
