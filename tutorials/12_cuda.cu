// # 12. CUDA without a GPU: one kernel three times, and a race
//
// A GPU runs one function, the *kernel*, in many threads at once. We write softmax three times,
// count what each version costs, and break one in the way that kernels are broken most often. None
// of it needs a GPU: where there is none, `cuda/emulation/` runs the very same code on the CPU, one
// thread after another, and you can [step through it](../docs/cuda-without-a-gpu.md).
//
// CUDA is C++ with a few more words. `__global__` marks a kernel, `__device__` a function that it
// calls. Threads come in *blocks* of up to 1,024; those of one block can wait for each other. It
// runs on one of the GPU's up to some 150 *multiprocessors*, and several share one while its
// registers and its shared memory suffice. A launch says how many blocks, the *grid*, of how many threads: `kernel<<<2, 32>>>(x, y)`, or, as
// any C++ compiler reads it, `launch<kernel>({.grid = 2, .block = 32}, x, y)`. All 64 threads run
// the same lines, and tell by numbers who they are: `threadIdx.x` is 0 to 31 in each block,
// `blockIdx.x` 0 or 1, `blockDim.x` 32, so `blockIdx.x * blockDim.x + threadIdx.x` is 0 to 63.
#include <algorithm>
#include <cmath>

#include "core/ops/ops.h"
#include "cuda/devices.h"
#include "cuda/launch.h"
#ifndef __CUDACC__
#include "cuda/emulation/options.h"
#endif
#include "tutorials/tutorial.h"

namespace mutilde::tutorial {
namespace {

// ## What is computed, and what it costs
//
// Softmax turns each row of a matrix into shares that add up to 1. In attention (tutorial 5) a row
// is what one pixel thinks of all others:
//
// $$y_j = \frac{e^{x_j - m}}{\sum_k e^{x_k - m}}, \qquad m = \max_k x_k$$
//
// Any $m$ gives the same $y$, for it cancels; the maximum keeps the exponentials from overflowing.
// So a row is walked over three times: for $m$, for the sum, to write $y$: little arithmetic for
// much memory. We count what that costs on a GPU: how often its large, slow, *global* memory is
// read, and how often threads wait: at barriers, where a block meets, and in shuffles, where the 32
// threads of a *warp* hand on a register. (A block is cut into warps, whose threads mostly go in
// step; nothing promises it, so they too meet at barriers or in shuffles.)
constexpr int kRows = 64, kColumns = 256;

struct Counts {
  int reads, barriers, shuffles;
};

/// Numbers in global memory that count how often one is read.
struct Input {
  const float* data;
  Counts* counts;
  __device__ float operator[](unsigned i) const {
    atomicAdd(&counts->reads, 1);  // many threads add at once
    return data[i];
  }
};

__device__ void barrier(Counts* counts) {
  if (threadIdx.x == 0) atomicAdd(&counts->barriers, 1);
  __syncthreads();
}

__device__ float shuffle(float value, int distance, Counts* counts) {
  if (threadIdx.x == 0) atomicAdd(&counts->shuffles, 1);
  return __shfl_xor_sync(0xffffffff, value, distance);
}

// ## Plain: a thread a row
//
// The work of a thread is a row, and the code what one would write for a CPU. A row takes
//
// ```text
// plain             768 reads,  0 barriers,  0 shuffles; 64 rows right, 64 sum to 1
// ```
//
// It is right (the CPU's `softmax()` to $10^{-6}$), and bad in two ways. Each number is read three
// times. And the threads of a warp read together, at first $x_0$ of 32 rows, 1,024 bytes apart.
// Memory comes in pieces of at least 32 bytes, so with each 4-byte number come 28 that are not
// wanted yet. (The emulation does not see that: it knows nothing about speed.)
__global__ void plain(Input x, float* y) {
  const unsigned first = (blockIdx.x * blockDim.x + threadIdx.x) * kColumns;
  float m = -INFINITY, sum = 0;
  for (unsigned j = 0; j < kColumns; ++j) m = fmaxf(m, x[first + j]);
  for (unsigned j = 0; j < kColumns; ++j) sum += expf(x[first + j] - m);
  for (unsigned j = 0; j < kColumns; ++j) y[first + j] = expf(x[first + j] - m) / sum;
}

// ## Tiled: a block a row
//
// Give a row to a block, a number to each of its 256 threads. Neighbours now read neighbours, and
// each number once. But the maximum and the sum run over all threads, which see each other's
// numbers fast in `__shared__` memory alone, some KiB in the processor that a block has for itself.
// There they are combined in a tree: the lower half of the threads takes in the upper half's
// numbers, then the lower quarter the second quarter's, and after $\log_2 256 = 8$ rounds number 0
// has it all. Before each all must have finished the last: hence the barriers, `__syncthreads()`.
//
// ```text
// tree              256 reads, 20 barriers,  0 shuffles; 64 rows right, 64 sum to 1
// ```
//
// A tree takes ten: one before each round, one before all read the result, one after (why, below).
template <bool waits_at_the_end, class Combine>
__device__ float over_block(float value, Combine combine, float* shared, Counts* counts) {
  float& mine = shared[threadIdx.x];
  mine = value;
  for (unsigned half = kColumns / 2; half > 0; half /= 2) {
    barrier(counts);
    if (threadIdx.x < half) mine = combine(mine, shared[threadIdx.x + half]);
  }
  barrier(counts);
  const float result = shared[0];
  if (waits_at_the_end) barrier(counts);
  return result;
}

template <bool waits_at_the_end>
__global__ void tree(Input x, float* y) {
  __shared__ float shared[kColumns];
  const auto larger = [](float a, float b) { return fmaxf(a, b); };
  const auto plus = [](float a, float b) { return a + b; };
  const unsigned i = blockIdx.x * kColumns + threadIdx.x;
  const float x_j = x[i], m = over_block<waits_at_the_end>(x_j, larger, shared, x.counts);
  const float e = expf(x_j - m);
  y[i] = e / over_block<waits_at_the_end>(e, plus, shared, x.counts);
}

// ## Warp: 32 threads a row
//
// Most of that waiting is not needed. The threads of a warp, its lanes, can read each other's
// registers: in `__shfl_xor_sync(mask, v, 16)` lane $i$ gets the `v` of the lane 16 away, `i ^ 16`.
// Combine, go on with 8, 4, 2 and 1, and after five steps *every* lane has the result. No barrier.
// So give a row to a warp (eight to a block of 32 x 8 threads), each lane every 32nd number:
//
// ```text
// warp              256 reads,  0 barriers, 10 shuffles; 64 rows right, 64 sum to 1
// ```
//
// The library's softmax is this one but for the registers: its rows have any length, so it reads
// them again (`softmax_forward` in `cuda/norm.cu`; its `warp_max` and `warp_sum` are our loops).
__global__ void warp(Input x, float* y) {
  const unsigned row = blockIdx.x * blockDim.y + threadIdx.y, first = row * kColumns + threadIdx.x;
  float mine[kColumns / 32], m = -INFINITY, sum = 0;
  for (unsigned i = 0; i < kColumns / 32; ++i) {
    mine[i] = x[first + 32 * i];
    m = fmaxf(m, mine[i]);
  }
  for (int d = 16; d > 0; d /= 2) m = fmaxf(m, shuffle(m, d, x.counts));
  for (float& v : mine) sum += v = expf(v - m);
  for (int d = 16; d > 0; d /= 2) sum += shuffle(sum, d, x.counts);
  for (unsigned i = 0; i < kColumns / 32; ++i) y[first + 32 * i] = mine[i] / sum;
}

int rows_within(float bound, const Tensor& error) {
  const auto is_within = [bound](float v) { return std::abs(v) < bound; };
  return static_cast<int>(std::ranges::count_if(error.values<float>(), is_within));
}

/// Runs a kernel, and prints what a row took and how many of them came out right.
template <auto kernel>
void report(const char* name, const cuda::LaunchConfig& config, const Tensor& x) {
  const Tensor y = empty_like(x), counts = Tensor::zeros({3}, DType::kInt32, x.device());
  const Input input{static_cast<float*>(x.raw()), static_cast<Counts*>(counts.raw())};
  cuda::launch<kernel>(config, input, static_cast<float*>(y.raw()));
  const std::vector<int32_t> n = counts.to_vector<int32_t>();
  const Tensor result = y.to(Device()), expected = softmax(x.to(Device()));
  fmt::print("{:<17} {} reads, {:2} barriers, {:2} shuffles; {:2} rows right, {} sum to 1\n", name,
             n[0] / kRows, n[1] / kRows, n[2] / kRows,
             rows_within(1e-6F, max(abs(result - expected), {1})),
             rows_within(1e-5F, sum(result, {1}) - 1.0));
}

// ## Two races
//
// Now leave out the barrier at the end of a tree. Thread 0 reads the maximum in `shared[0]`, goes
// on to the second tree, and writes its exponential there. Has thread 1 read the maximum before?
// Nothing makes it. A result that depends on who is faster is a *race*. The emulation does not look
// for races. But its threads take turns, each running until it has to wait, and `options().order`
// says who is first. A kernel must give the same in any order. In two:
//
// ```text
// thread 0 first    256 reads, 18 barriers,  0 shuffles;  0 rows right, 64 sum to 1
// 256 threads counted 256
// thread 255 first  256 reads, 18 barriers,  0 shuffles; 64 rows right, 64 sum to 1
// 256 threads counted 256
// ```
//
// Found: with thread 0 first, the others take its $e^{x_0 - m}$ for the maximum. And look at the
// last number: so $y_0$ is out of proportion, but a row still adds up to 1, and a test that only
// adds up would pass. The library's tests hold every op to its formula, in both orders.
//
// And one that is *not* found: 256 threads count themselves without an atomic. On a GPU those of a
// warp read the same old number, and most additions are lost. Here each is done before the next
// begins. (For the first kind, in shared memory, GPUs have `compute-sanitizer --tool racecheck`.)
#ifndef __CUDACC__  // what a GPU makes of these faults is chance
__global__ void count_themselves(int* count) { *count += 1; }

void races(const Tensor& x) {
  for (const bool forward : {true, false}) {
    emulation::options().order = forward ? emulation::Order::kForward : emulation::Order::kReverse;
    report<tree<false>>(forward ? "thread 0 first" : "thread 255 first",
                        {.grid = kRows, .block = kColumns}, x);
    const Tensor count = Tensor::zeros({1}, DType::kInt32, x.device());
    cuda::launch<count_themselves>({.grid = 1, .block = 256}, static_cast<int*>(count.raw()));
    fmt::print("256 threads counted {}\n", count.item());
  }
}

// ## A barrier that not all reach
//
// The other classic is a barrier within a branch: the upper half of the threads never comes. On a
// GPU this is undefined: it may hang, or go on with wrong numbers. The emulation knows who waits
// for whom, and where ([all that it finds](../docs/cuda-without-a-gpu.md#what-it-finds)):
//
// ```text
// block (0,0,0), thread (0,0,0): waits at __syncthreads(), 12_cuda.cu:222,
//   for thread (128,0,0), which has returned
// ```
__global__ void meets_in_a_branch(float* shares) {
  for (unsigned half = kColumns / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      shares[threadIdx.x] += shares[threadIdx.x + half];
      __syncthreads();
    }
  }
}

void barrier_fault(const Tensor& x) {
  try {
    cuda::launch<meets_in_a_branch>({.grid = 1, .block = kColumns}, static_cast<float*>(x.raw()));
  } catch (const emulation::KernelFault& fault) {
    const std::string message = fault.what();  // the kernel's name, then:
    const size_t block = message.find("block ("), whom = message.find(" for ");
    fmt::print("{}\n  {}\n", message.substr(block, whom - block), message.substr(whom + 1));
  }
}
#endif

}  // namespace

void tutorial_main(const Options&) {
  use_cuda();
  const Tensor x = Generator(1).normal({kRows, kColumns}, DType::kFloat32).to(Device::cuda());
  report<plain>("plain", {.grid = kRows / 32, .block = 32}, x);
  report<tree<true>>("tree", {.grid = kRows, .block = kColumns}, x);
  report<warp>("warp", {.grid = kRows / 8, .block = {32, 8}}, x);
#ifndef __CUDACC__
  races(x);
  barrier_fault(x);
#endif
}

}  // namespace mutilde::tutorial
