"""The architectures, one family per file: its names, its trunk and the paper's branches. family: what they share.

zoo: the networks of torchvision and timm; ``attach`` builds their branches.
"""
