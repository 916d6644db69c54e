"""Feed perturbed visual input to a model and read the first answer token."""
