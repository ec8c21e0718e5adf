"""Loads weights. files: reads weights in any file. pretrained: a trunk to start from. official: the authors' files."""
