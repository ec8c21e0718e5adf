"""Triton, for GPUs. mimic_loss_kernels: the kernels of the mimicking loss; mimic_loss: plans and launches them.

``ops/_fused_mimic_loss.py`` calls them, and ``mimic_loss_eager`` in ``ops/mimic_loss.py`` says what they compute.
"""
