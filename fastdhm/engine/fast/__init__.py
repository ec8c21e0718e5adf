"""The same network, faster: fuse (compiled ops for its modules, by way of trace), blocks, graphs (CUDA graphs).

synced_norm: batch norms over all processes.
"""
