"""Compute and measure memory and time: of models, of probing, of pruned answers."""
