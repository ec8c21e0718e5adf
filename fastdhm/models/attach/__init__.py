"""Branches for any network: what is found in it (stages, forks) and what is built (grow, fit; dead: cannot learn).

attach: all of it, in order.
"""

from fastdhm.models.attach.attach import AttachedModel, attach

__all__ = ["AttachedModel", "attach"]
