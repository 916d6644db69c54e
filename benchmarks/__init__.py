"""Compute and measure memory and time of models and of probing, with and without a GPU."""
