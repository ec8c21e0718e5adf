"""A run: train (the loop), run (what it holds), step, evaluate, and what a step is computed with (device, compiling).

optim: what moves the weights. saved: what a run's folder holds. fast: the same network, faster. settle: a config made
definite. reid: ranking people. gradients: how far branches agree. plan, display: what people are told. timer: time.
"""
