"""The work of each command after its flags are parsed, one file per command; train and compare are elsewhere.

``measured`` and ``diagnose_plots`` belong to ``diagnose``; ``doctor`` has its own folder.
"""
