"""The architectures, one family a file: its names, its trunk and the paper's branches. family: what they share.

zoo: torchvision's and timm's networks, whose branches ``attach`` builds.
"""
