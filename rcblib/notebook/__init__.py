"""Spare a notebook its first lines: parameters, seeds, provenance, model, images and codebook."""
