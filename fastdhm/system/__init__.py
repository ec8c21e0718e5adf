"""What stands between fastdhm, the machine and the person; importing any of it does not import torch.

console, streams, plotting: what is printed and drawn. endings, signals, waiting: how a command ends, and how it waits.
files, paths, typed_yaml: what is written and read. environment, memory, processors: what the machine gives.
"""
