"""Compute with tensors alone: geometry, divergence, clustering, scoring."""
