"""Triton kernels, installed as ``fastgen.kernels``: one file per op, named like the op elsewhere.

``<op>.py`` plans the launches of an op: tile sizes, grid, arguments. It needs torch tensors but
no Triton until it launches, so plans can also be made from tensors on the ``meta`` device and
compiled ahead of time on a machine without a GPU. ``jit/<op>.py`` holds the kernels themselves
and is imported by the launch, because defining a kernel needs Triton.
"""
