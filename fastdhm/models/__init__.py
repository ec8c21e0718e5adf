"""Networks with the paper's side branches.

by_name: builds a network by its name. base: what a network with branches is. families: the architectures. attach:
branches for any network. weights: loads pre-trained weights. cost: parameters and multiply-adds. correlation: how
similar the filters of two branches are.
"""

from fastdhm.models.attach import AttachedModel, attach
from fastdhm.models.base.alone import AloneBranch, alone
from fastdhm.models.base.branched import Branch, BranchedModel
from fastdhm.models.base.cascade import Cascade
from fastdhm.models.base.classifier import classifier_of
from fastdhm.models.base.ensemble import one_network
from fastdhm.models.base.headless import Headless
from fastdhm.models.base.recompute import checkpoint_activations
from fastdhm.models.by_name import (
    DEFAULT_BRANCHES,
    FAMILIES,
    build,
    build_alone,
    check,
    cost_cells,
    costs_alone,
    family_of,
    inventory,
)
from fastdhm.models.cost import Cost, Inventory, measure
from fastdhm.models.families.family import Family
from fastdhm.models.weights.files import chosen as chosen_weights
from fastdhm.models.weights.library import library_network
from fastdhm.models.weights.official import load_official
from fastdhm.models.weights.pretrained import Pretrained, load_pretrained

__all__ = [
    "DEFAULT_BRANCHES",
    "FAMILIES",
    "AloneBranch",
    "AttachedModel",
    "Branch",
    "BranchedModel",
    "Cascade",
    "Cost",
    "Family",
    "Headless",
    "Inventory",
    "Pretrained",
    "alone",
    "attach",
    "build",
    "build_alone",
    "check",
    "checkpoint_activations",
    "chosen_weights",
    "classifier_of",
    "cost_cells",
    "costs_alone",
    "family_of",
    "inventory",
    "library_network",
    "load_official",
    "load_pretrained",
    "measure",
    "one_network",
]  # fmt: skip
