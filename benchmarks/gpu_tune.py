"""Times plans of the persistent kernels one by one: python -m benchmarks.gpu_tune OUTPUT.csv KIND,DTYPE,HIDDEN,BATCH ..."""

import itertools
import sys
import time as clock

import torch

from benchmarks.gpu import microseconds
from fused_rnn import _C, ops

TIME = 400
KEYS = ("cluster", "blocks", "groups", "units", "sequences", "row_tiles", "batch_tiles", "held")


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
    out = open(sys.argv[1], "a")
    for spec in sys.argv[2:]:
        start = clock.time()
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
                for units in (8, 16, 32):
                    blocks = -(-hidden // units)
                    if path == "cluster" and blocks > 16 or units > hidden:
                        continue
                    for sequences in (8, 16, 32, 48, 64, 128):
                        if sequences > max(batch, 8):
                            continue
                        groups = -(-batch // sequences)
                        if blocks * groups > 264:
                            continue
                        for tiles, held in itertools.product((1, 2, 4), range(5)):
                            _C.set_cuda_wish(path, blocks, groups, tiles, held)
                            plan = _C.cuda_plan(**args)
                            if not plan["blocks"]:
                                continue
                            key = tuple(int(plan[k]) for k in KEYS)
                            if key not in seen:
                                seen[key] = (min(microseconds(run, 3)) / TIME, plan["microseconds"])
            mine = tuple(int(chosen[k]) for k in KEYS)
            if mine not in seen:
                _C.set_cuda_wish("any")
                seen[mine] = (min(microseconds(run, 2)) / TIME, chosen["microseconds"])
            best = sorted(seen.items(), key=lambda item: item[1][0])
            for key, (time, estimate) in seen.items():
                print(kind, name, hidden, batch, back, *key, f"{time:.3f}", f"{estimate:.3f}", sep=",", file=out)
            out.flush()
            shown = best[:3] + [item for item in best if item[0][0]][:1] + [item for item in best if not item[0][0]][:1]
            print(f"{spec} {'bwd' if back else 'fwd'} {len(seen)} plans", *(f"{k}:{t:.2f}/{e:.2f}" for k, (t, e) in shown),
                  "chosen", mine, f"{seen[mine][0]:.2f}/{seen[mine][1]:.2f}", flush=True)
    _C.set_cuda_wish("any")


main()
