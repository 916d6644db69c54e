"""Hold the worlds that are known to the last pixel, and the models trained on them."""
