"""Fused operations as functions on tensors. None is public yet; see docs/architecture.md."""
