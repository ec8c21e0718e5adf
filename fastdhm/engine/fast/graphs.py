"""The step as a CUDA graph: the host launches one thing a step, whatever the network's depth.

Written for NVIDIA GPUs and not yet run on one.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastdhm.errors import UserError

# Steps of a form before it is captured: they choose convolution algorithms and create the optimizer's state.
WARM_UP = 3


def check_recomputed(model: nn.Module) -> None:
    """``ValueError`` where a captured step would compute activations again with other random numbers than at first.

    A graph counts its random numbers by itself, so that the generator cannot be put back within it.
    """
    for module in model.modules():
        shares = [getattr(module, name, 0) for name in ("p", "drop_prob", "drop_rate")]
        if any(isinstance(share, (int, float)) and share > 0 for share in shares):
            raise UserError(
                f"cuda_graphs and activation_checkpointing are true, and {type(module).__name__} of this network drops "
                "at random: set one of them false, or --dropout 0"
            )


class GraphedStep:
    """A step as :func:`fastdhm.engine.step.make_step` gives it, captured once for each of its forms and then replayed.

    A form is what the host decides: the shape of the images, the branches that are computed, and what ``form()`` tells.
    What else changes from step to step lies on the device, where a replay reads it anew: images, targets and weights of
    the loss are copied into the graph's own, the learning rate is a tensor that the optimizer holds. A replay's results
    are overwritten by the next. The host waits for the device at a capture, and for nothing else.
    """

    def __init__(self, step: Callable, form: Callable[[], Hashable], graphs: "Graphs | None" = None):
        self.step, self.form, self.graphs = step, form, graphs or Graphs()
        self.warm: Counter[Hashable] = Counter()
        self.captured: dict[Hashable, tuple[tuple[Tensor | None, ...], Callable]] = {}

    def __call__(
        self, image_BCHW: Tensor, labels: Any, weights_AA: Tensor, active: tuple[str, ...] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``labels`` is a named tuple of tensors, of which some may be None."""
        given = (image_BCHW, weights_AA, *labels)
        form = (image_BCHW.shape, active, self.form())
        if form not in self.captured:
            self.warm[form] += 1
            if self.warm[form] <= WARM_UP:
                return self.graphs.warm_up(lambda: self.step(image_BCHW, labels, weights_AA, active))
            own = tuple(None if tensor is None else tensor.clone() for tensor in given)
            image, weights, *rest = own
            step = partial(self.step, image, type(labels)(*rest), weights, active)
            self.captured[form] = own, self.graphs.capture(step)
        own, replay = self.captured[form]
        for mine, tensor in zip(own, given, strict=True):
            if mine is not None:
                mine.copy_(tensor)
        return replay()


class Graphs:
    """Functions of no arguments as CUDA graphs, which share their memory, being replayed one at a time."""

    def __init__(self) -> None:
        self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def warm_up(self, function: Callable[[], Any]) -> Any:
        """Run it as it is, on the stream of the captures: autograd remembers where a gradient was first summed."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            results = function()
        torch.cuda.current_stream().wait_stream(self.stream)
        return results

    def capture(self, function: Callable) -> Callable:
        """A function that replays what this one launches; nothing is computed yet."""
        graph = torch.cuda.CUDAGraph()
        # A loader's thread may pin memory meanwhile, which the mode "global" would take for a fault of this capture.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            results = function()

        def replay() -> Any:
            graph.replay()
            return results

        return replay
