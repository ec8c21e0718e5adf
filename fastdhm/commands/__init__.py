"""What a command does once its flags are parsed, training and comparing aside: one file a command.

``measured`` and ``diagnose_plots`` belong to ``diagnose``; ``doctor`` has a folder of its own.
"""
