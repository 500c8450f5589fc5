"""Speed of the operators against plain PyTorch and against what the machine can do: ``python -m benchmarks --help``."""
