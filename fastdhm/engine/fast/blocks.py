"""Deep networks by the block: what they repeat is compiled once, whatever their depth.

One graph of a whole network takes the compiler longer the deeper it is, and more than in proportion. A network of a
thousand layers has few blocks that differ: all of one class with parameters of the same shapes share their code.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Tracing ResNet-20 and -56 whole took 5 and 33 s on a busy core, by the block 8 and 3 s (seven kinds in either).
MAX_CONVOLUTIONS_IN_ONE_GRAPH = 200
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
ENOUGH_ALIKE = 4  # blocks of a kind, on average, that make compiling the kind worth it


def is_deep(model: nn.Module) -> bool:
    """Whether one graph of the network would take too long to compile."""
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > MAX_CONVOLUTIONS_IN_ONE_GRAPH


def goes_by_block(model: nn.Module) -> bool:
    """Whether the network is compiled by the block: a deep one that has blocks alike."""
    return is_deep(model) and bool(kinds_of_blocks(model))


def kinds_of_blocks(model: nn.Module) -> dict[tuple, list[nn.Module]]:
    """The blocks that a network repeats, the outermost, by their class and the shapes of their parameters."""
    number: Counter[type] = Counter()
    kinds_of = defaultdict(set)
    for module in model.modules():
        number[type(module)] += 1
        kinds_of[type(module)].add(_shapes(module))
    repeated = {of for of, kinds in kinds_of.items() if number[of] >= ENOUGH_ALIKE * len(kinds)}
    blocks, visit = defaultdict(list), [model]
    while visit:
        module = visit.pop()
        parts = list(module.children())
        if parts and type(module) in repeated and not isinstance(module, CONTAINERS):
            blocks[type(module), _shapes(module)].append(module)
        else:
            visit += reversed(parts)
    return dict(blocks)


def _shapes(module: nn.Module) -> tuple[torch.Size, ...]:
    return tuple(parameter.shape for parameter in module.parameters())


def allow_compilations(count: int) -> None:
    """Have torch compile a function in ``count`` more forms before it gives up and runs it as it is."""
    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # as torch 2.6 calls it
    setattr(config, name, getattr(config, name) + count)


def compile_blocks(model: nn.Module, variants: int) -> dict[nn.Module, Callable]:
    """Each repeated block of a network and its compiled forward; ``variants`` is how many forms a kind has in a run."""
    kinds = kinds_of_blocks(model)
    allow_compilations(len(kinds) * variants)  # all blocks of a class are counted together
    blocks = [block for alike in kinds.values() for block in alike]
    return {block: torch.compile(block.forward, fullgraph=True, dynamic=False) for block in blocks}


@contextmanager
def forwards(calls: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Inside, these modules compute by these functions; outside, for evaluation and copies, they are as they were."""
    for module, call in calls.items():
        module.forward = call
    try:
        yield
    finally:
        for module in calls:
            del module.forward
