"""The kernels. Each module imports Triton, so only ``fastgen.kernels.launch`` imports them."""
