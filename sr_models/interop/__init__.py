"""Registration of the models with other programs for super-resolution, a module each."""
