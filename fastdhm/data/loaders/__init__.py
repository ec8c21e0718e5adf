"""Batches of an epoch: loader (the protocol and the options), build (one of any kind), and the three kinds.

order, crops: which samples, and which box of each, functions of (seed, epoch). resample: FFCV's missing resizing.
ahead: copies to a device. ffcv_library: the one file that imports FFCV.
"""
