"""The CPU kernels of one instruction set against those of another, in random problems, without torch."""
