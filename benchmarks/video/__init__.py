"""Video end to end: our pipeline beside a per-frame PyTorch loop over OpenCV."""
