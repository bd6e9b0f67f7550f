#!/usr/bin/env python3
"""The PyTorch program that mutilde's speed is measured against.

It builds the network of the three presets in plain PyTorch and times

  train    forward, loss, backward, AdamW and one EMA update on a fixed batch;
  sample   a forward without gradients and the arithmetic of one step of p(x[t-1] | x[t]).

One JSON line a measurement. With --serve it runs one step for each line "step" that it reads, so
that another program can take turns with it on the same machine:

  < ready          (warm-up is over)
  > step
  < 812.402        (milliseconds)
  > end            (or the end of the input)
  < {"preset": ...}

It runs on any PyTorch from 1.13 on; --compile needs 2.0. Peak memory is that of the process, so
measure one mode a process where it matters: `peak_mb` is the most that was ever resident,
`steps_peak_mb` the most during the timed steps alone (without torch.compile's own work), and
`import_mb` what `import torch` takes before there is a network.
"""

import argparse
import json
import math
import os
import resource
import statistics
import sys
import time

# A fair peer picks its kernels for this CPU by itself: drop what would hold it back. The libraries
# read these as they load, so this comes before `import torch`.
for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
             "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA",
             "DNNL_MAX_CPU_ISA", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
    os.environ.pop(name, None)


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

IMPORT_MB = peak_mb()
IMAGE_SIZE = 32
DIFFUSION_STEPS = 1000
EMA_RATE = 0.9999

# `attention` holds the factors of downsampling with attention: 2 and 4 are 16x16 and 8x8 pixels.
PRESETS = {
    "small": dict(channels=32, mult=(1, 2, 2), blocks=1, attention=(2, 4), heads=4,
                  learn_sigma=False, batch_size=32),
    "medium": dict(channels=64, mult=(1, 2, 2, 2), blocks=2, attention=(2, 4), heads=4,
                   learn_sigma=False, batch_size=16),
    "cifar": dict(channels=128, mult=(1, 2, 2, 2), blocks=3, attention=(2, 4), heads=4,
                  learn_sigma=True, batch_size=4),
}
PARAMETERS = {"small": 1.24e6, "medium": 9.93e6, "cifar": 52.5e6}


# ---- The network -------------------------------------------------------------------------------

def zeroed(module):
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class GroupNorm32(nn.GroupNorm):
    """32 groups, computed in float32 whatever the precision around it."""

    def __init__(self, channels):
        super().__init__(32, channels, eps=1e-5)

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


def timestep_embedding(t, dim):
    rates = torch.exp(torch.arange(dim // 2, device=t.device) * (-math.log(10000) / (dim // 2)))
    angles = t[:, None].float() * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(nn.Module):
    """x + conv(silu((1 + scale) * norm(conv(silu(norm(x)))) + shift)), scale and shift from t."""

    def __init__(self, c_in, c_out, c_emb):
        super().__init__()
        self.norm_in = GroupNorm32(c_in)
        self.conv_in = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.emb = nn.Linear(c_emb, 2 * c_out)
        self.norm_out = GroupNorm32(c_out)
        self.conv_out = zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, emb):
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.norm_out(h) * (1 + scale) + shift
        return self.skip(x) + self.conv_out(F.silu(h))


class Attention(nn.Module):
    """Self-attention over the pixels. The 3C channels of qkv are (head, q|k|v, channel)."""

    def __init__(self, channels, heads, sdpa):
        super().__init__()
        self.heads, self.sdpa = heads, sdpa
        self.norm = GroupNorm32(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x, emb):
        b, c, height, width = x.shape
        d, pixels = c // self.heads, height * width
        h = self.norm(x).reshape(b, c, pixels)
        if self.sdpa:  # Pixels by channels, as it likes them; 1/sqrt(d) is d^(-1/4) on q and on k.
            qkv = F.linear(h.transpose(1, 2), self.qkv.weight[:, :, 0], self.qkv.bias)
            q, k, v = qkv.reshape(b, pixels, self.heads, 3, d).permute(3, 0, 2, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, pixels, c)
            a = F.linear(a, self.proj.weight[:, :, 0], self.proj.bias).transpose(1, 2)
        else:
            q, k, v = self.qkv(h).reshape(b * self.heads, 3, d, pixels).unbind(1)
            scale = d ** -0.25
            weights = torch.einsum("bct,bcs->bts", q * scale, k * scale)
            weights = weights.float().softmax(dim=-1).to(v.dtype)
            a = self.proj(torch.einsum("bts,bcs->bct", weights, v).reshape(b, c, pixels))
        return x + a.reshape(b, c, height, width)


class Conv(nn.Module):
    """A 3x3 convolution: the first layer, and with stride 2 the way down."""

    def __init__(self, c_in, c_out, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1)

    def forward(self, x, emb):
        return self.conv(x)


class Upsample(Conv):
    def forward(self, x, emb):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Sequence(nn.ModuleList):
    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb)
        return x


class UNet(nn.Module):
    def __init__(self, channels, mult, blocks, attention, heads, learn_sigma, sdpa):
        super().__init__()
        self.channels = channels
        c_emb = 4 * channels
        self.embed = nn.Sequential(nn.Linear(channels, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))

        def stage(c_in, c_out, factor):
            layers = [ResBlock(c_in, c_out, c_emb)]
            if factor in attention:
                layers.append(Attention(c_out, heads, sdpa))
            return layers

        c, factor, last = channels, 1, len(mult) - 1
        self.down, kept = nn.ModuleList([Sequence([Conv(3, c)])]), [c]
        for level, m in enumerate(mult):
            for _ in range(blocks):
                self.down.append(Sequence(stage(c, m * channels, factor)))
                c = m * channels
                kept.append(c)
            if level != last:
                self.down.append(Sequence([Conv(c, c, stride=2)]))
                kept.append(c)
                factor *= 2

        self.middle = Sequence([ResBlock(c, c, c_emb), Attention(c, heads, sdpa),
                                ResBlock(c, c, c_emb)])

        self.up = nn.ModuleList()
        for level, m in reversed(list(enumerate(mult))):
            for i in range(blocks + 1):
                layers = stage(c + kept.pop(), m * channels, factor)
                c = m * channels
                if level != 0 and i == blocks:
                    layers.append(Upsample(c, c))
                    factor //= 2
                self.up.append(Sequence(layers))

        self.out = nn.Sequential(GroupNorm32(c), nn.SiLU(),
                                 zeroed(nn.Conv2d(c, 6 if learn_sigma else 3, 3, padding=1)))

    def forward(self, x, t):
        emb = self.embed(timestep_embedding(t, self.channels))
        kept = []
        for layer in self.down:
            x = layer(x, emb)
            kept.append(x)
        x = self.middle(x, emb)
        for layer in self.up:
            x = layer(torch.cat([x, kept.pop()], dim=1), emb)
        return self.out(x)


# ---- The two steps -----------------------------------------------------------------------------

def schedule_tables(device):
    """What a sampling step looks up by t, for the linear schedule."""
    beta = torch.linspace(1e-4, 0.02, DIFFUSION_STEPS, dtype=torch.float64)
    alpha_bar = torch.cumprod(1 - beta, 0)
    alpha_bar_prev = torch.cat([torch.ones(1, dtype=torch.float64), alpha_bar[:-1]])
    variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
    variance[0] = variance[1]
    tables = dict(
        x0_from_x=(1 / alpha_bar).sqrt(),
        x0_from_eps=(1 / alpha_bar - 1).sqrt(),
        mean_from_x0=beta * alpha_bar_prev.sqrt() / (1 - alpha_bar),
        mean_from_x=(1 - alpha_bar_prev) * (1 - beta).sqrt() / (1 - alpha_bar),
        log_variance=variance.log(),
        log_beta=beta.log(),
    )
    return {name: values.float().to(device) for name, values in tables.items()}


class Bench:
    """A network, its optimizer, its average and one fixed batch."""

    def __init__(self, args, mode):
        torch.manual_seed(0)
        preset = dict(PRESETS[args.preset])
        batch_size = args.batch_size or preset.pop("batch_size")
        preset.pop("batch_size", None)
        self.learn_sigma = preset["learn_sigma"]
        self.device = torch.device(args.device)
        self.short = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[args.precision]
        # Float16's gradients would vanish: the loss is scaled, and a step that overflows is skipped.
        self.scaler = torch.amp.GradScaler(args.device) if args.precision == "fp16" else None

        net = UNet(**preset, sdpa=args.attention == "sdpa").to(self.device)
        self.parameters = list(net.parameters())
        self.count = sum(p.numel() for p in self.parameters)
        expected = PARAMETERS[args.preset]
        assert abs(self.count / expected - 1) < 5e-3, (self.count, expected)

        layout = torch.channels_last if args.channels_last else torch.contiguous_format
        net = net.to(memory_format=layout)
        shape = (batch_size, 3, IMAGE_SIZE, IMAGE_SIZE)
        # The noisy images are drawn once: x[t] and the noise in it are inputs of the step.
        self.x = torch.randn(shape, device=self.device).contiguous(memory_format=layout)
        self.noise = torch.randn(shape, device=self.device).contiguous(memory_format=layout)
        self.t = torch.randint(DIFFUSION_STEPS, (batch_size,), device=self.device)
        mode_of_compile = "reduce-overhead" if args.graphs else "default"
        self.forward = torch.compile(net, mode=mode_of_compile) if args.compile else net

        if mode == "train":
            self.ema = [p.detach().clone() for p in self.parameters]
            self.optimizer = self.adamw()
            self.step = self.train_step
        else:
            self.tables = schedule_tables(self.device)
            self.step = self.sample_step

    def adamw(self):
        options = dict(lr=1e-4, weight_decay=0.0)
        try:
            return torch.optim.AdamW(self.parameters, fused=True, **options)
        except (RuntimeError, TypeError):  # Before 2.4 there is no fused AdamW on the CPU.
            return torch.optim.AdamW(self.parameters, foreach=True, **options)

    def predict(self):
        if self.short is None:
            return self.forward(self.x, self.t)
        with torch.autocast(self.device.type, dtype=self.short):
            return self.forward(self.x, self.t).float()

    def train_step(self):
        self.optimizer.zero_grad(set_to_none=True)
        out = self.predict()
        loss = F.mse_loss(out[:, :3], self.noise)
        if self.learn_sigma:
            # Stands in for the bound on the likelihood: the variance half gets a gradient, but
            # the (cheap, elementwise) bound itself is not computed. It favours this program.
            loss = loss + 1e-3 * out[:, 3:].mean()
        if self.scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        with torch.no_grad():
            torch._foreach_mul_(self.ema, EMA_RATE)
            torch._foreach_add_(self.ema, self.parameters, alpha=1 - EMA_RATE)

    @torch.no_grad()
    def sample_step(self):
        out = self.predict()
        at = {name: values[self.t][:, None, None, None] for name, values in self.tables.items()}
        x0 = (at["x0_from_x"] * self.x - at["x0_from_eps"] * out[:, :3]).clamp(-1, 1)
        mean = at["mean_from_x0"] * x0 + at["mean_from_x"] * self.x
        log_variance = at["log_variance"]
        if self.learn_sigma:
            part = (out[:, 3:] + 1) / 2
            log_variance = part * at["log_beta"] + (1 - part) * log_variance
        keep = (self.t != 0).float()[:, None, None, None]
        return mean + keep * (0.5 * log_variance).exp() * torch.randn_like(self.x)

    def timed(self):
        """Runs one step; its milliseconds."""
        start = time.perf_counter()
        self.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - start)


# ---- Measuring ---------------------------------------------------------------------------------

def restart_peak():
    """Makes the kernel count the peak of resident memory anew (Linux); false if it cannot."""
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
        return True
    except OSError:
        return False


def serve(bench):
    print("ready", flush=True)
    times = []
    for line in sys.stdin:
        if line.strip() != "step":
            break
        times.append(bench.timed())
        print(f"{times[-1]:.3f}", flush=True)
    return times


def measure(args, mode):
    bench = Bench(args, mode)
    for _ in range(args.warmup):
        bench.timed()
    before = peak_mb()
    restarted = restart_peak()
    times = serve(bench) if args.serve else [bench.timed() for _ in range(args.steps)]
    after = peak_mb()
    variant = ["compiled" if args.compile else "eager"] + ["graphs"] * args.graphs
    variant += ["channels_last"] * args.channels_last + [args.attention]
    row = dict(
        preset=args.preset, mode=mode, precision=args.precision, variant=",".join(variant),
        ms=round(statistics.median(times), 3) if times else None,
        ms_all=[round(ms, 3) for ms in times],
        peak_mb=round(max(before, after), 1),
        steps_peak_mb=round(after, 1) if restarted else None,
        import_mb=round(IMPORT_MB, 1),
        parameters=bench.count, batch_size=len(bench.x), threads=torch.get_num_threads(),
        device=args.device, torch=torch.__version__)
    if bench.device.type == "cuda":
        row["peak_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        row["device"] = torch.cuda.get_device_name()
    print(json.dumps(row), flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--mode", choices=("train", "sample", "both"), default="both")
    parser.add_argument("--compile", action="store_true", help="run through torch.compile")
    parser.add_argument("--graphs", action="store_true", help="with --compile: its mode that replays CUDA graphs")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--attention", choices=("einsum", "sdpa"),
                        default="sdpa" if hasattr(F, "scaled_dot_product_attention") else "einsum")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=0, help="0: the preset's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--serve", action="store_true", help='one step for each line "step"')
    args = parser.parse_args()
    if args.serve and args.mode == "both":
        parser.error("--serve needs --mode train or --mode sample")
    if args.device == "cpu":
        assert torch.backends.mkldnn.is_available(), "this PyTorch has no oneDNN: no fair peer"
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
    for mode in ("train", "sample") if args.mode == "both" else (args.mode,):
        measure(args, mode)


if __name__ == "__main__":
    main()
