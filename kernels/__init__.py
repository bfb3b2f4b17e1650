"""Triton kernels, installed as ``fastgen.kernels``: one file per op, named like the op elsewhere.

There are none yet; they arrive together with the fused operations of ``fastgen.ops``. Importing
this package imports neither Triton nor torch, and a kernel's file must keep it so: Triton is
imported inside the function that launches the kernel.
"""
