"""The layer between fastdhm, the machine and the user. Importing it does not import torch.

console, streams, progress, plotting: what is printed and drawn. files, loading, typed_yaml, paths: what is written and
read. folders: who may write in one. endings, peers, signals, waiting: how a command ends, alone and among others, and
waits. place, meeting, network: where a process of several stands, and how they find each other. environment, memory,
processors: what the machine offers.
"""
