#!/usr/bin/env python3
"""The convolutions of the cifar preset at a batch of 128, beside cuDNN's through PyTorch.

  bench/cuda_layers.py build/gpu/bench/cuda_bench [bf16|fp16]

runs `cuda_bench --layers` and then the same layers in PyTorch on the same GPU (bfloat16 or float16, channels last,
cuDNN's search for the fastest kernel on), and prints a row for each layer and pass: milliseconds, TFLOP/s
and the share of the peak, which is what PyTorch's product of two 8192 x 8192 matrices reaches. Both sides
are medians; ours also rounds the float32 weight to that type each time, which PyTorch is spared here.
"""

import statistics
import subprocess
import sys

import torch


def median_ms(call):
    """Milliseconds: the median of at least 5 calls and as many as fill 0.1 s, after two that warm up."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call(), call()
    times = []
    while len(times) < 5 or sum(times) < 100:
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def peer_ms(layer, what, dtype):
    n, size, c, c_out, kernel, stride = layer
    def images(channels, side):
        x = torch.randn(n, channels, side, side, device="cuda", dtype=dtype)
        return x.contiguous(memory_format=torch.channels_last)
    x, dout = images(c, size), images(c_out, size // stride)
    weight = torch.randn(c_out, c, kernel, kernel, device="cuda", dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(c_out, device="cuda", dtype=dtype)
    if what == "forward":
        return median_ms(lambda: torch.nn.functional.conv2d(x, weight, bias, stride, kernel // 2))
    wanted = [what == "input gradient", what == "weight gradient", False]
    return median_ms(lambda: torch.ops.aten.convolution_backward(
        dout, x, weight, None, [stride] * 2, [kernel // 2] * 2, [1] * 2, False, [0] * 2, 1, wanted))


def main():
    torch.backends.cudnn.benchmark = True
    precision = sys.argv[2] if len(sys.argv) > 2 else "bf16"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    lines = subprocess.run([sys.argv[1], "--layers", "--precision", precision], check=True, capture_output=True, text=True).stdout
    a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    peak = 2 * 8192**3 / median_ms(lambda: a @ a) * 1e-9
    print(f"peak: {peak:.0f} TFLOP/s (PyTorch {torch.__version__}, {torch.cuda.get_device_name()})\n")
    print("| images x pixels, channels, kernel, stride | pass | ms | TFLOP/s | of the peak | PyTorch ms | "
          "times as fast |")
    print("|---|---|---|---|---|---|---|")
    for line in lines.splitlines():
        sizes, what, ms = (part.strip() for part in line.split("|"))
        layer = [int(size) for size in sizes.split()]
        n, size, c, c_out, kernel, stride = layer
        tflops = 2 * n * (size // stride)**2 * c * c_out * kernel**2 / float(ms) * 1e-9
        peer = peer_ms(layer, what, dtype)
        print(f"| {n} x {size}x{size}, {c} to {c_out}, {kernel}x{kernel}, {stride} | {what} | {float(ms):.3f} | "
              f"{tflops:.0f} | {100 * tflops / peak:.0f} % | {peer:.3f} | {peer / float(ms):.2f} |")


if __name__ == "__main__":
    main()
