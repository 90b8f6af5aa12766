"""Triton kernels of the operations on an NVIDIA GPU, and the functions that launch them.

Triton is imported by these modules alone, and nothing imports them but `cuda.py`. With `TRITON_INTERPRET=1` in the
environment before the first import they run on CPU tensors, which is how they are tested without a GPU.
"""
