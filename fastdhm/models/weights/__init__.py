"""Loads weights. files: reads weights in any file. pretrained: a trunk to start from. library: trained networks of
torchvision and timm. official: the authors' files."""
