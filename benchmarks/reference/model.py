"""The reference for speed: DHM in plain torch, trained as the released code trains it.

It uses float32, NCHW and separate operations, a softmax and a log-softmax for each ordered pair of branches, torch's
own SGD, and torchvision's transforms on PIL images in a ``DataLoader``. Every logged number is read at once, M * M +
2 M times per step (15 with three branches), and each read waits for the device. Nothing else is slowed down: it has
torch's defaults of today, and data sets that fit are in memory.

Legend: M branches, B batch, C channels, H height, W width, K classes, N samples.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdhm.config import TrainConfig
from fastdhm.engine.device import autocast
from fastdhm.methods import weight_matrix
from fastdhm.models import BranchedModel

RELEASED_SMOOTHING = 1e-8


class Network(nn.Module):
    """A trunk and its branches, called one by one; the logits of each, B0 first. Parameters are as in the engine."""

    def __init__(self, model: BranchedModel):
        super().__init__()
        self.trunk, self.branches, self.taps = model.strip(), model.branches, model.taps
        self.features: dict[str, Tensor] = {}
        for tap in set(self.taps.values()):
            self.trunk.get_submodule(tap).register_forward_hook(
                lambda module, args, output, tap=tap: self.features.update({tap: output})
            )

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        logits = [self.trunk(image_BCHW)]
        logits += [branch(self.features[self.taps[name]]) for name, branch in self.branches.items()]
        self.features.clear()
        return logits


class Reference:
    """A network, its loss and its optimizer.

    Args:
        model: a branched model with the initial weights; the reference takes its branches.
        config: what is learnt: method, learning rate, momentum, weight decay, temperature, label smoothing.
        device: where it trains.
        smoothing: added to every probability of the mimicking terms; the released code has 1e-8, 0 is exact.
        precision: float32; another type trains under autocast, to compare the engine with.
    """

    def __init__(
        self,
        model: BranchedModel,
        config: TrainConfig,
        device: torch.device,
        *,
        smoothing: float = 0.0,
        precision: torch.dtype = torch.float32,
    ):
        self.network = Network(model).to(device).train()
        self.config, self.device, self.smoothing, self.precision = config, device, smoothing, precision
        self.names = model.branch_names
        self.weights = weight_matrix(config.method, len(self.names), config.direction).tolist()
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), config.lr, config.momentum,
            weight_decay=config.weight_decay, nesterov=config.nesterov,
        )  # fmt: skip

    def step(self, image_BCHW: Tensor, target_B: Tensor, mimic_scale: float = 1.0) -> dict[str, float]:
        """One optimizer step; the terms of the loss and each branch's top-1 and top-5 accuracy in percent."""
        image_BCHW, target_B = image_BCHW.to(self.device), target_B.to(self.device)
        with autocast(self.device, self.precision):
            logits = self.network(image_BCHW)
        terms = self.terms(
            [logits_BK if logits_BK.dtype == torch.float64 else logits_BK.float() for logits_BK in logits], target_B
        )
        loss = sum(self.weights[p][q] * (1.0 if p == q else mimic_scale) * term for (p, q), term in terms.items())
        logged = {f"{self.names[p]}->{self.names[q]}": term.item() for (p, q), term in terms.items()}
        for name, logits_BK in zip(self.names, logits, strict=True):
            for k in (1, 5):
                logged[f"top{k}/{name}"] = accuracy(logits_BK, target_B, k).item()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return logged

    def set_learning_rate(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def loss(self, logged: dict[str, float], mimic_scale: float = 1.0) -> float:
        """The weighted sum of the terms that :meth:`step` returned."""
        pairs = [(p, q) for p, row in enumerate(self.weights) for q, weight in enumerate(row) if weight]
        scales = {True: 1.0, False: mimic_scale}
        return sum(self.weights[p][q] * scales[p == q] * logged[f"{self.names[p]}->{self.names[q]}"] for p, q in pairs)

    def terms(self, logits: Sequence[Tensor], target_B: Tensor) -> dict[tuple[int, int], Tensor]:
        """The terms with a weight: ``(m, m)`` a cross-entropy, ``(p, q)`` mimicking, teacher p, student q."""
        config, terms = self.config, {}
        for p, teacher_BK in enumerate(logits):
            for q, student_BK in enumerate(logits):
                if self.weights[p][q] == 0:
                    continue
                if p == q:
                    terms[p, q] = F.cross_entropy(student_BK, target_B, label_smoothing=config.label_smoothing)
                else:
                    terms[p, q] = mimicking(teacher_BK, student_BK, config.temperature, self.smoothing)
        return terms


def mimicking(teacher_BK: Tensor, student_BK: Tensor, temperature: float, smoothing: float) -> Tensor:
    """``T^2 KL(teacher || student)``, mean over the batch; the teacher is a constant."""
    if smoothing:  # as in the released code, which smooths both distributions
        K = student_BK.shape[1]
        teacher_BK, student_BK = (
            (F.softmax(logits_BK / temperature, dim=1) + smoothing) / (1 + K * smoothing)
            for logits_BK in (teacher_BK.detach(), student_BK)
        )
        log_student_BK = student_BK.log()
    else:
        teacher_BK = F.softmax(teacher_BK.detach() / temperature, dim=1)
        log_student_BK = F.log_softmax(student_BK / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student_BK, teacher_BK, reduction="batchmean")


def accuracy(logits_BK: Tensor, target_B: Tensor, k: int) -> Tensor:
    """Percent of rows whose class is among the ``k`` largest logits."""
    with torch.no_grad():
        _, top_Bk = logits_BK.topk(min(k, logits_BK.shape[1]), dim=1)
        return (top_Bk == target_B[:, None]).float().sum() * (100.0 / len(target_B))
