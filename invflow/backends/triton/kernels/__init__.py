"""The kernels in the Triton language, and the functions that they share."""
