#!/usr/bin/env python3
"""Training and sampling steps of mutilde against PyTorch, run in turn on one machine.

For each preset and mode one process of ours and one of each variant of the peer are started and warmed up;
then each runs one step in turn, over and over, so that a drift of the machine's speed meets all alike. The
table shows medians, and the ratio to the faster variant as the median of the ratios turn by turn.

On a GPU (--device cuda) a turn is a burst of steps, whose median counts: alone, a step would meet a clock that
has gone down, and the batches are larger. Peak memory is then that of the tensors on the GPU.
"""
import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
VARIANTS = {"eager": [], "channels_last": ["--channels_last"], "compiled": ["--compile"]}
GPU_VARIANTS = {"channels_last": ["--channels_last"], "compiled": ["--channels_last", "--compile"],
                "graphs": ["--channels_last", "--compile", "--graphs"]}
GPU_BATCHES = {"small": 256, "medium": 128, "cifar": 128}


class Runner:
    """A process that runs one step for each line it is sent, and answers with its milliseconds."""

    def __init__(self, name, command, environment=None):
        self.name = name
        self.messages = tempfile.TemporaryFile("w+")  # shown only if it fails: compilers are talkative
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.messages, text=True, env=environment)
        self.times = []

    def fail(self, when):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        code = self.process.wait()
        self.messages.seek(0)
        tail = "".join(self.messages.readlines()[-20:])
        sys.exit(f"compare: {self.name} ended {when} (exit code {code}); the end of what it said:\n{tail}")

    def wait_ready(self):
        for line in self.process.stdout:
            if line.startswith("ready"):
                return line.split()[1:]
        self.fail("before it was ready")

    def turn(self, burst):
        """A step; or a burst of them, of which the first two warm up, and the median counts."""
        times = [self.step() for _ in range(burst)]
        self.times.append(statistics.median(times[2:] or times))

    def step(self):
        try:
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.fail(f"before step {len(self.times) + 1}")
        answer = self.process.stdout.readline()
        if not answer:
            self.fail(f"in step {len(self.times) + 1}")
        return float(answer)

    def resident_mb(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
        return 0.0

    def close(self):
        """Returns what the process says at its end."""
        self.process.stdin.close()
        last = self.process.stdout.read()
        self.process.wait()
        return last


def start_peers(args, preset, mode):
    if not args.python:
        return []
    command = [args.python, f"{HERE}/peer_torch.py", "--preset", preset, "--mode", mode, "--precision",
               args.precision, "--serve", "--device", args.device]
    if args.device == "cuda":
        command += ["--batch_size", str(GPU_BATCHES[preset])]
    return [Runner(name, command + args.known_variants[name], environment()) for name in args.variants.split(",")]


def environment():
    # Neither side is held to the settings of the shell: a distribution's older OpenBLAS kernel, or how threads wait.
    return {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "OMP_"))}


def measure(args, preset, mode, peers):
    on_gpu = args.device == "cuda"
    command = [args.mutilde, "bench", "--preset", preset, "--mode", mode, "--precision", args.precision, "--serve",
               "--device", args.device]
    if on_gpu:
        command += ["--batch_size", str(GPU_BATCHES[preset])]
    ours = Runner("mutilde", command, environment())
    flops, batch, peak = ours.wait_ready()
    for peer in peers:
        if not on_gpu:  # one after the other; on a GPU all are ready by now
            peer.wait_ready()
    runners = [ours] + peers
    for _ in range(args.runs):
        for runner in runners:
            time.sleep(0 if on_gpu else args.pause)  # threads of the one before stop spinning
            runner.turn(12 if on_gpu else 1)
    row = {"preset": preset, "mode": mode, "precision": args.precision, "device": args.device, "batch": int(batch),
           "ours_ms": statistics.median(ours.times), "ours_ms_all": ours.times, "peak_mb": ours.resident_mb(),
           "peak_gflops": float(peak)}
    row["images_per_s"] = row["batch"] / row["ours_ms"] * 1e3
    row["share_of_peak"] = float(flops) / (row["ours_ms"] * 1e6) / float(peak)
    best = min(peers, key=lambda runner: statistics.median(runner.times), default=None)
    if best:
        row["peer"] = "PyTorch " + args.torch_version + " " + best.name
        row["peer_ms"] = statistics.median(best.times)
        row["ratio"] = statistics.median(b / a for a, b in zip(ours.times, best.times))
        row["peer_peak_mb"] = best.resident_mb()
        row["peer_all_ms"] = {runner.name: statistics.median(runner.times) for runner in peers}
    last = {runner: runner.close() for runner in runners}
    if on_gpu:
        row["peak_mb"] = float(last[ours].split()[-1]) / 2**20
        if best:
            row["peer_peak_mb"] = json.loads(last[best].splitlines()[-1])["peak_mb"]
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutilde", required=True, help="the program that was built")
    parser.add_argument("--python", help="a Python with PyTorch; without it only ours is measured")
    parser.add_argument("--presets", default="small,medium,cifar")
    parser.add_argument("--modes", default="train,sample")
    parser.add_argument("--variants", help="of the peer (default: all; on a GPU all but graphs, which compile as long "
                        "again and keep memory of their own)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of both sides")
    parser.add_argument("--when", metavar="FILE", help="with --device cuda: start the peers, which compile for "
                        "minutes, and then wait until this file exists")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32",
                        help="of both sides; fp16 (with scaled losses) on a GPU alone")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.25, help="seconds between steps")
    parser.add_argument("--json", metavar="FILE", help="write the rows as a JSON list")
    args = parser.parse_args()
    args.known_variants = GPU_VARIANTS if args.device == "cuda" else VARIANTS
    args.variants = args.variants or ",".join(name for name in args.known_variants if name != "graphs")
    unknown = set(args.variants.split(",")) - set(args.known_variants)
    if unknown:
        parser.error(f"--variants: {', '.join(sorted(unknown))} given, {', '.join(args.known_variants)} are known")
    args.torch_version = ""
    if args.python:
        args.torch_version = subprocess.run([args.python, "-c", "import torch; print(torch.__version__)"],
                                            stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    print(f"{'preset':8}{'mode':8}{'batch':>6}{'ours ms':>10}{'images/s':>10}{'peak':>8}{'of it':>8}{'peak MB':>9}"
          f"{'peer ms':>10}{'peer MB':>9}{'ratio':>7}  peer")
    rows = []
    wanted = [(preset, mode) for preset in args.presets.split(",") for mode in args.modes.split(",")]
    started = {}
    if args.device == "cuda":
        started = {pair: start_peers(args, *pair) for pair in wanted}
        for peers in started.values():
            for peer in peers:
                peer.wait_ready()
        while args.when and not os.path.exists(args.when):
            time.sleep(0.1)
    for preset, mode in wanted:
        peers = started[preset, mode] if started else start_peers(args, preset, mode)
        row = measure(args, preset, mode, peers)
        rows.append(row)
        nan = float("nan")
        print(f"{preset:8}{mode:8}{row['batch']:6}{row['ours_ms']:10.1f}{row['images_per_s']:10.1f}"
              f"{row['peak_gflops']:8.0f}{row['share_of_peak']:8.1%}{row['peak_mb']:9.0f}"
              f"{row.get('peer_ms', nan):10.1f}{row.get('peer_peak_mb', nan):9.0f}{row.get('ratio', nan):7.2f}"
              f"  {row.get('peer', '-')}", flush=True)
    if args.json:
        temporary = args.json + ".tmp"
        with open(temporary, "w") as out:
            json.dump(rows, out, indent=1)
        os.replace(temporary, args.json)


if __name__ == "__main__":
    sys.exit(main())
