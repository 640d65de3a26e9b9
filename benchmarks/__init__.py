"""The benchmarks: `python -m benchmarks` checks every case, times it against its peers and reports the results."""
