"""On what a run computes, and how."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Device and precision."""

    __slots__ = ()

    device: str = "auto"
    """Device: cpu, cuda, cuda:1 or auto.
    auto takes cuda where there is one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Autocast: float32, bfloat16, float16 or auto.
    auto takes bfloat16 where the device computes in it, else float16 on CUDA, else float32."""
    impl: Literal["auto", "eager", "cpp", "triton"] = "auto"
    """Who computes the loss: eager, cpp, triton or auto.
    eager is plain torch, cpp is C++ on a CPU, triton is a kernel on a GPU. auto takes the fastest that is there. On a
    CPU it goes for the norms with their activations too."""
    loss: Literal["auto", "logits", "linear"] = "auto"
    """What the loss is computed from: logits, linear or auto.
    logits: those of all branches, images and classes at once. linear: features and classifiers of the branches; logits
    exist for a part of the batch at a time, which saves memory with very many classes. auto: linear where the logits
    of a step would take more than a 16th of the memory."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the step: on, off or auto.
    It compiles beside the run, which takes the compiled step when it is ready. auto: on a GPU, where the run is long
    enough to repay it."""
    cuda_graphs: bool = False
    """Replay the step as a CUDA graph (not tested yet).
    A GPU does not have to wait for Python then. It has not run on a GPU yet."""
    activation_checkpointing: bool = False
    """Compute activations twice, to save memory.
    The bits stay the same. Most activations are dropped, and computed again in the backward pass: a third more
    computing, for networks so deep that their activations do not fit."""
    compress_gradients: bool = False
    """Send gradients between processes in bfloat16.
    Half the bytes, and their rounding. It changes nothing in a run of one process."""
    deterministic: bool = False
    """Make runs on one machine agree in every bit.
    Only algorithms that sum in a fixed order are used, and a step is compiled, if at all, before the first of them."""
