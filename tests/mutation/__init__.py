"""Plants faults into copies of the library, one at a time, and runs the tests that should see each: `make mutate`.

A fault that no test sees is a hole in the tests. Faults of the CUDA kernels are in tests/cuda_on_host/test_faults.py.
"""
