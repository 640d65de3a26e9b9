"""The CUDA kernels' own code, run on the CPU: fibers stand in for threads, OS threads for blocks."""
