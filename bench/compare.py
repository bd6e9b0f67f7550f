#!/usr/bin/env python3
"""Training and sampling steps of mutilde against PyTorch, run in turn on one machine.

For each preset and mode one process of ours and one of each variant of the peer are started and warmed up;
then each runs one step in turn, over and over, so that a drift of the machine's speed meets all alike. The
table shows medians, and the ratio to the faster variant as the median of the ratios turn by turn.
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

    def step(self):
        try:
            self.process.stdin.write("step\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.fail(f"before step {len(self.times) + 1}")
        answer = self.process.stdout.readline()
        if not answer:
            self.fail(f"in step {len(self.times) + 1}")
        self.times.append(float(answer))

    def peak_mb(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith("VmHWM"):
                    return int(line.split()[1]) / 1024
        return 0.0

    def close(self):
        self.process.stdin.close()
        self.process.stdout.read()
        self.process.wait()


def measure(args, preset, mode):
    # Neither side is held to the settings of the shell: a distribution's older OpenBLAS kernel, or how threads wait.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS_", "OMP_"))}
    ours = Runner("mutilde", [args.mutilde, "bench", "--preset", preset, "--mode", mode, "--precision", args.precision,
                              "--serve"], environment)
    flops, batch, peak = ours.wait_ready()
    peers = []
    if args.python:
        for variant in args.variants.split(","):
            peers.append(Runner(variant, [args.python, f"{HERE}/peer_torch.py", "--preset", preset, "--mode", mode,
                                          "--precision", args.precision, "--serve"] + VARIANTS[variant], environment))
            peers[-1].wait_ready()
    runners = [ours] + peers
    for _ in range(args.runs):
        for runner in runners:
            time.sleep(args.pause)  # threads of the one before stop spinning
            runner.step()
    row = {"preset": preset, "mode": mode, "precision": args.precision, "batch": int(batch),
           "ours_ms": statistics.median(ours.times), "ours_ms_all": ours.times, "peak_mb": ours.peak_mb(),
           "peak_gflops": float(peak)}
    row["images_per_s"] = row["batch"] / row["ours_ms"] * 1e3
    row["share_of_peak"] = float(flops) / (row["ours_ms"] * 1e6) / float(peak)
    if peers:
        best = min(peers, key=lambda runner: statistics.median(runner.times))
        row["peer"] = "PyTorch " + args.torch_version + " " + best.name
        row["peer_ms"] = statistics.median(best.times)
        row["ratio"] = statistics.median(b / a for a, b in zip(ours.times, best.times))
        row["peer_peak_mb"] = best.peak_mb()
        row["peer_all_ms"] = {runner.name: statistics.median(runner.times) for runner in peers}
    for runner in runners:
        runner.close()
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutilde", required=True, help="the program that was built")
    parser.add_argument("--python", help="a Python with PyTorch; without it only ours is measured")
    parser.add_argument("--presets", default="small,medium,cifar")
    parser.add_argument("--modes", default="train,sample")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="of the peer (default: all)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of both sides")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pause", type=float, default=0.25, help="seconds between steps")
    parser.add_argument("--json", metavar="FILE", help="write the rows as a JSON list")
    args = parser.parse_args()
    unknown = set(args.variants.split(",")) - set(VARIANTS)
    if unknown:
        parser.error(f"--variants: {', '.join(sorted(unknown))} given, {', '.join(VARIANTS)} are known")
    args.torch_version = ""
    if args.python:
        args.torch_version = subprocess.run([args.python, "-c", "import torch; print(torch.__version__)"],
                                            stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    print(f"{'preset':8}{'mode':8}{'batch':>6}{'ours ms':>10}{'images/s':>10}{'peak':>8}{'of it':>8}{'peak MB':>9}"
          f"{'peer ms':>10}{'peer MB':>9}{'ratio':>7}  peer")
    rows = []
    for preset in args.presets.split(","):
        for mode in args.modes.split(","):
            row = measure(args, preset, mode)
            rows.append(row)
            print(f"{preset:8}{mode:8}{row['batch']:6}{row['ours_ms']:10.1f}{row['images_per_s']:10.1f}"
                  f"{row['peak_gflops']:8.0f}{row['share_of_peak']:8.1%}{row['peak_mb']:9.0f}{row.get('peer_ms', float('nan')):10.1f}"
                  f"{row.get('peer_peak_mb', float('nan')):9.0f}{row.get('ratio', float('nan')):7.2f}"
                  f"  {row.get('peer', '-')}", flush=True)
    if args.json:
        temporary = args.json + ".tmp"
        with open(temporary, "w") as out:
            json.dump(rows, out, indent=1)
        os.replace(temporary, args.json)


if __name__ == "__main__":
    sys.exit(main())
