"""Measurements: how long fastgen takes, always beside a peer measured in the same run."""
