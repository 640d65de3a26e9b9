"""Times plans of the persistent kernels one by one: python -m benchmarks.gpu_tune."""

import sys
import torch

from benchmarks.gpu import microseconds
from fused_rnn import _C, ops

TIME = 512


def problem(kind, dtype, hidden, batch):
    gates = 4 if kind == "LSTM" else 3
    torch.manual_seed(0)
    make = lambda *shape: (torch.randn(*shape, device="cuda") * 0.1).to(dtype)
    x, h0, c0 = make(TIME, batch, 64), make(1, batch, hidden), make(1, batch, hidden)
    weights = [make(gates * hidden, 64), make(gates * hidden, hidden), make(gates * hidden), make(gates * hidden)]
    if kind == "LSTM":
        forward = lambda: ops.lstm(x, h0, c0, weights, None, None, True)
        y, _, _, g, c = forward()
        backward = lambda: ops.lstm_backward(y, None, None, None, x, h0, c0, weights, None, None, y, g, c, False, False, False)
    else:
        forward = lambda: ops.gru(x, h0, weights, None, None, True)
        y, _, g = forward()
        backward = lambda: ops.gru_backward(y, None, x, h0, weights, None, None, y, g, False, False, False)
    return forward, backward


def main():
    for spec in sys.argv[1:]:
        kind, name, hidden, batch = spec.split(",")
        dtype, hidden, batch = getattr(torch, name), int(hidden), int(batch)
        exact = not torch.backends.cudnn.allow_tf32
        _C.set_cuda_wish("any")
        for back, run in enumerate(problem(kind, dtype, hidden, batch)):
            args = dict(gates=4 if kind == "LSTM" else 3, element_bytes=dtype.itemsize, batch=batch, hidden_size=hidden,
                        directions=1, exact=exact, backward=bool(back))
            _C.set_cuda_wish("any")
            chosen = _C.cuda_plan(**args)
            seen = {}
            for path in ("grid", "cluster"):
                for units in range(1, 65):
                    blocks = -(-hidden // units)
                    if path == "cluster" and blocks > 16:
                        continue
                    if units > 16 and units % 4:
                        continue
                    for sequences in (8, 16, 24, 32, 48, 64, 128):
                        groups = -(-batch // sequences)
                        for depth in (1, 2, 4, 8):
                            for tiles in (1, 2, 4):
                                _C.set_cuda_wish(path, blocks, groups, depth, tiles)
                                plan = _C.cuda_plan(**args)
                                if not plan["blocks"]:
                                    continue
                                key = tuple(plan[k] for k in ("cluster", "blocks", "groups", "units", "sequences", "row_warps", "depth_warps", "row_tiles", "batch_tiles"))
                                if key in seen:
                                    continue
                                try:
                                    seen[key] = (min(microseconds(run, 2)) / TIME, plan["microseconds"])
                                except RuntimeError as error:
                                    seen[key] = (1e9, 0)
                                    print(key, str(error)[:100])
            best = sorted(seen.items(), key=lambda item: item[1][0])
            print(f"== {spec} {'backward' if back else 'forward'}: {len(seen)} plans; (cluster, blocks, groups, units, sequences, row_warps, depth_warps, row_tiles, batch_tiles)")
            mine = tuple(chosen[k] for k in ("cluster", "blocks", "groups", "units", "sequences", "row_warps", "depth_warps", "row_tiles", "batch_tiles"))
            for key, (time, estimate) in best[:5]:
                print("  ", key, f"{time:.2f} us, estimate {estimate:.2f}")
            best_cluster = [item for item in best if item[0][0]][:1] + [item for item in best if not item[0][0]][:1]
            for key, (time, estimate) in best_cluster:
                print("  best of path", key, f"{time:.2f} us, estimate {estimate:.2f}")
            print("   chosen", mine, seen.get(mine), flush=True)
            with open(sys.path[0] + "/tune.csv" if False else "/tmp/tune.csv", "a") as file:
                for key, (time, estimate) in seen.items():
                    print(kind, name, hidden, batch, back, *map(int, key), f"{time:.3f}", f"{estimate:.3f}", sep=",", file=file)
    _C.set_cuda_wish("any")


main()
