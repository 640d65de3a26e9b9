"""Times LSTM and GRU on a GPU against torch.nn with cuDNN: python -m benchmarks.gpu --help."""

import argparse
import itertools
import json
import statistics
from pathlib import Path

import torch

import fused_rnn
from fused_rnn import _C

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def microseconds(run, repeats: int) -> list[float]:
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in events:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in events]


def runs(module, input, training):
    if not training:
        def forward():
            with torch.no_grad():
                module(input)
        return forward
    grad = torch.randn(*input.shape[:-1], module.hidden_size, device="cuda", dtype=input.dtype)
    tensors = [input.requires_grad_(), *module.parameters()]

    def both():
        torch.autograd.grad(module(input)[0], tensors, grad)
    return both


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--time", type=int, nargs="+", default=[512])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 32, 64, 128])
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 256, 384, 512, 768, 1024, 1536, 2048])
    parser.add_argument("--kind", nargs="+", default=["LSTM", "GRU"])
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--parts", action="store_true", help="profile forward + backward")
    args = parser.parse_args()
    rows = []
    for kind, dtype, hidden, batch, time in itertools.product(args.kind, args.dtype, args.hidden, args.batch, args.time):
        torch.manual_seed(0)
        peer = getattr(torch.nn, kind)(hidden, hidden, device="cuda", dtype=DTYPES[dtype])
        ours = getattr(fused_rnn, kind)(hidden, hidden, device="cuda", dtype=DTYPES[dtype])
        ours.load_state_dict(peer.state_dict())
        peer.flatten_parameters()
        input = torch.randn(time, batch, hidden, device="cuda", dtype=DTYPES[dtype])
        with torch.no_grad():
            error = (ours(input)[0].float() - peer(input)[0].float()).abs().max().item()
        row = {"kind": kind, "dtype": dtype, "hidden": hidden, "batch": batch, "time": time, "error": error}
        for training in (False, True):
            name = "both" if training else "forward"
            for label, module in (("ours", ours), ("cudnn", peer)):
                times = microseconds(runs(module, input.detach(), training), args.repeats)
                row[f"{name} {label}"] = times
        rows.append(row)
        if args.parts:
            both = runs(ours, input.detach(), True)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                both()
                torch.cuda.synchronize()
            for event in sorted(profile.key_averages(), key=lambda e: -e.device_time_total)[:9]:
                print(f"      {event.device_time_total / time:7.3f} us/step {event.count:3} {event.key[:100]}")
        median = {key: statistics.median(value) / time for key, value in row.items() if isinstance(value, list)}
        print(f"{kind:4} {dtype:8} T{time} B{batch:<3} H{hidden:<4} err {error:.1e}  fwd {median['forward ours']:6.2f} vs "
              f"{median['forward cudnn']:6.2f} us/step {median['forward cudnn'] / median['forward ours']:5.2f}x   f+b "
              f"{median['both ours']:6.2f} vs {median['both cudnn']:6.2f} {median['both cudnn'] / median['both ours']:5.2f}x",
              flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
