"""Branches for any network. stages and forks: what is found in it. grow, fit and dead: what is built and checked.

attach: runs all of it, in order.
"""

from fastdhm.models.attach.attach import AttachedModel, attach

__all__ = ["AttachedModel", "attach"]
