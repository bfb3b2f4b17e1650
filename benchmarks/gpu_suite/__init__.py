"""Everything that only a GPU can show, by one command: ``python -m benchmarks.gpu_suite``.

Builds the extension modules, runs the GPU tests and the memory checker, measures every operation
and network beside PyTorch, and writes one JSON file and one Markdown table. ``--dry-run`` takes the
same path on a CPU with tiny sizes. See docs/gpu.md.
"""
