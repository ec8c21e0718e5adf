"""Train convolutional networks with Dynamic Hierarchical Mimicking (CVPR 2020)."""

__version__ = "0.1.0"
