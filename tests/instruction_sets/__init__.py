"""Compares the CPU kernels of one instruction set with those of another in random problems, without torch."""
