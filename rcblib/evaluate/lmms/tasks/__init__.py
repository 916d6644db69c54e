"""Offer tasks of our own to lmms-eval: task files, and the functions that they name."""
