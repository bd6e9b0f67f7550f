// Single layers by oneDNN, the peer of bench/kernels_bench: memory in whatever layout oneDNN likes best,
// made before the clock starts.
#pragma once

#include <cstdint>
#include <functional>

namespace mutilde::bench {

enum class Pass { kForward, kBackwardInput, kBackwardWeight };

/// x: [N, C, size, size], weight: [C_out, C, kernel, kernel], padding kernel / 2; forward adds a bias.
std::function<void()> onednn_conv2d(Pass pass, int64_t N, int64_t size, int64_t C, int64_t C_out,
                                    int64_t kernel, int64_t stride);
/// x: [M, K], weight: [columns, K]; forward adds a bias.
std::function<void()> onednn_linear(Pass pass, int64_t M, int64_t K, int64_t columns);

}  // namespace mutilde::bench
