#!/usr/bin/env python3
"""Every layer of the presets: mutilde against oneDNN called directly, and against PyTorch.

bench/kernels_bench runs ours and oneDNN's (in the layout oneDNN likes best), this process PyTorch's (the
faster of contiguous and channels-last memory); they take turns, a burst of calls each. A row shows medians
over the turns; a ratio is the peer's time over ours, the median of the ratios turn by turn.
"""
import argparse
import collections
import json
import os
import statistics
import subprocess
import sys
import time

# PyTorch picks its kernels for this processor by itself, and reads these as it loads.
for name in list(os.environ):
    if name.startswith(("OPENBLAS_", "OMP_", "DNNL_", "ONEDNN_")):
        del os.environ[name]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402


def burst_ms(call):
    """As kernels_bench: the median call over 0.03 s and at least 3 calls, after one to warm up."""
    call()
    times = []
    while sum(times) < 0.03 or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def conv2d(kernel, memory_format, N, size, C, C_out, width, stride):
    x = torch.randn(N, C, size, size).contiguous(memory_format=memory_format)
    weight = torch.randn(C_out, C, width, width).contiguous(memory_format=memory_format)
    bias = torch.randn(C_out)
    if kernel == "conv2d":
        return lambda: F.conv2d(x, weight, bias, stride, width // 2)
    dout = torch.randn(N, C_out, size // stride, size // stride).contiguous(memory_format=memory_format)
    wanted = [kernel == "conv2d_backward_input", kernel == "conv2d_backward_weight", False]
    return lambda: torch.ops.aten.convolution_backward(dout, x, weight, None, [stride] * 2, [width // 2] * 2, [1, 1],
                                                       False, [0, 0], 1, wanted)


def linear(kernel, memory_format, M, K, columns):
    x, weight, bias, dout = torch.randn(M, K), torch.randn(columns, K), torch.randn(columns), torch.randn(M, columns)
    return {"linear": lambda: F.linear(x, weight, bias),
            "linear, gradient of x": lambda: torch.mm(dout, weight),
            "linear, gradient of weight": lambda: torch.mm(dout.t(), x)}[kernel]


def attention(kernel, memory_format, N, T, heads, D):
    backward = kernel == "attention_backward"
    qkv = [torch.randn(N, heads, T, D, requires_grad=backward) for _ in range(3)]
    if not backward:
        return lambda: F.scaled_dot_product_attention(*qkv)
    out, dout = F.scaled_dot_product_attention(*qkv), torch.randn(N, heads, T, D)
    return lambda: torch.autograd.grad(out, qkv, dout, retain_graph=True)


def norm(kernel, memory_format, N, P, C, scaled, silu):
    backward = kernel == "group_norm_backward"
    side = round(P ** 0.5)
    x = torch.randn(N, C, side, side).contiguous(memory_format=memory_format)
    parameters = [torch.randn(C), torch.randn(C)] + ([torch.randn(N, C, 1, 1), torch.randn(N, C, 1, 1)] if scaled else [])
    inputs = [x] + parameters
    for tensor in inputs:
        tensor.requires_grad_(backward)

    def forward():
        y = F.group_norm(x, 32, parameters[0], parameters[1], 1e-5)
        if scaled:
            y = y * (1 + parameters[2]) + parameters[3]
        return F.silu(y) if silu else y

    if not backward:
        return forward
    out = forward()
    dout = torch.randn(N, C, side, side).contiguous(memory_format=memory_format)
    return lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True)


LAYERS = {"conv2d": conv2d, "linear": linear, "attention": attention, "norm": norm}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels_bench", required=True, help="the program that was built")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the rows as a JSON list")
    parser.add_argument("words", nargs="*", help="a preset, words that the kernel or the shape must contain")
    args = parser.parse_args()
    ours = subprocess.Popen([args.kernels_bench, "--serve", *args.words], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True)

    def ask(word):
        ours.stdin.write(word + "\n")
        ours.stdin.flush()

    rows, sums = [], collections.defaultdict(lambda: [0.0, 0.0, 0.0])
    preset = peak = None
    for line in ours.stdout:
        fields = line.rstrip("\n").split("\t")
        if fields[0] == "preset":
            preset, threads, peak = fields[1], int(fields[2]), float(fields[3])
            torch.set_num_threads(threads)
            print(f"\n{preset}: {threads} threads, peak {peak:.0f} GFLOP/s, PyTorch {torch.__version__}\n"
                  f"{'kernel':27}{'shape':31}{'count':>5}{'ms':>9}{'share':>7}{'oneDNN':>9}{'ratio':>7}{'PyTorch':>9}{'ratio':>7}",
                  flush=True)
            continue
        _, kernel, shape, peer_layer, count, work, unit = fields
        kind, *sizes = peer_layer.split()
        torch.manual_seed(0)
        with torch.set_grad_enabled(kernel in ("attention_backward", "group_norm_backward")):
            calls = [LAYERS[kind](kernel, memory_format, *map(int, sizes))
                     for memory_format in (torch.contiguous_format, torch.channels_last)]
            times = []
            for _ in range(args.turns):
                time.sleep(0.02)  # PyTorch's threads stop spinning
                ask("time")
                ours_ms, onednn_ms = map(float, ours.stdout.readline().split())
                times.append((ours_ms, onednn_ms, min(burst_ms(call) for call in calls)))
            ask("next")
        row = {"preset": preset, "kernel": kernel, "shape": shape, "count": int(count),
               "ours_ms": statistics.median(t[0] for t in times), "pytorch_ms": statistics.median(t[2] for t in times),
               "pytorch_ratio": statistics.median(t[2] / t[0] for t in times)}
        if unit == "flops":
            row["share_of_peak"] = float(work) / (row["ours_ms"] * 1e6) / peak
        if times[0][1]:
            row["onednn_ms"] = statistics.median(t[1] for t in times)
            row["onednn_ratio"] = statistics.median(t[1] / t[0] for t in times)
        rows.append(row)
        for i, name in enumerate(("ours_ms", "onednn_ms", "pytorch_ms")):
            sums[preset, kernel][i] += row["count"] * row.get(name, 0)
        share = f"{row['share_of_peak']:7.0%}" if "share_of_peak" in row else f"{'':7}"
        onednn = f"{row['onednn_ms']:9.3f}{row['onednn_ratio']:7.2f}" if "onednn_ms" in row else f"{'-':>9}{'-':>7}"
        print(f"{kernel:27}{shape:31}{count:>5}{row['ours_ms']:9.3f}{share}{onednn}"
              f"{row['pytorch_ms']:9.3f}{row['pytorch_ratio']:7.2f}", flush=True)
    if ours.wait() != 0:
        sys.exit(f"layers: kernels_bench ended with exit code {ours.returncode}")
    print(f"\n{'sums, weighed by count':58}{'ours ms':>14}{'oneDNN':>16}{'PyTorch':>16}")
    for (name, kernel), (mine, onednn, pytorch) in sums.items():
        print(f"{name:9}{kernel:49}{mine:14.1f}{onednn or float('nan'):16.1f}{pytorch:16.1f}")
    if args.json:
        with open(args.json + ".tmp", "w") as out:
            json.dump(rows, out, indent=1)
        os.replace(args.json + ".tmp", args.json)


if __name__ == "__main__":
    main()
