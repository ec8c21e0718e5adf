"""Which layer makes a network's logits: found by following the data, and what is said where there is none."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdhm import attach, models

WIDTH = 5  # of every inner layer, and the number of classes


def body():
    widths = ((3, WIDTH), (WIDTH, WIDTH), (WIDTH, WIDTH))
    return nn.Sequential(*(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths))


class Net(nn.Module):
    def __init__(self, fc):
        super().__init__()
        self.features, self.fc = body(), fc

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class Cosine(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight_KC, self.scale = nn.Parameter(torch.randn(WIDTH, WIDTH)), nn.Parameter(torch.tensor(9.0))

    def forward(self, x):
        return self.scale * F.linear(F.normalize(x), F.normalize(self.weight_KC))


class NormedLinear(nn.Linear):
    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


class TwoHeads(Net):
    """As a distilled ViT has them: the mean of two classifiers."""

    def __init__(self):
        super().__init__(nn.Linear(WIDTH, WIDTH))
        self.head_dist = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = self.features(x).mean((2, 3))
        return (self.fc(x) + self.head_dist(x)) / 2


class AuxiliaryOutput(Net):
    """A further classifier that runs last, and whose logits go elsewhere."""

    def __init__(self):
        super().__init__(nn.Linear(WIDTH, WIDTH))
        self.aux = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        x = self.features(x).mean((2, 3))
        logits, self.seen = self.fc(x), self.aux(x)
        return logits


class Convolutional(nn.Module):
    def __init__(self, kernel=1):
        super().__init__()
        self.features, self.last = body(), nn.Conv2d(WIDTH, WIDTH, kernel, padding=kernel // 2)

    def forward(self, x):
        return F.relu(self.last(self.features(x))).mean((2, 3))


def mlp():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, WIDTH))


FOUND = {
    "linear": (lambda: Net(nn.Linear(WIDTH, WIDTH)), "fc"),
    "behind dropout": (lambda: Net(nn.Sequential(nn.Dropout(0.2), nn.Linear(WIDTH, WIDTH))), "fc.1"),
    "mlp": (lambda: Net(mlp()), "fc.3"),
    "softmax after it": (lambda: Net(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LogSoftmax(1))), "fc.0"),
    "normed": (lambda: Net(NormedLinear(WIDTH, WIDTH)), "fc"),
    "another beside the way": (AuxiliaryOutput, "fc"),
    "convolution": (Convolutional, "last"),
}
MISSING = {
    "functional": (lambda: Net(Cosine()), r"made by linear in fc \(Cosine\), which is neither an nn.Linear"),
    "identity": (lambda: Net(nn.Identity()), "its fc is an Identity"),
    "two heads": (TwoHeads, "its logits come from several layers, such as head_dist"),
    "norm after it": (lambda: Net(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))), "has weights too"),
    "inner convolution": (lambda: Convolutional(3), "last .Conv2d. is a convolution inside the network"),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_classifier_is_the_last_layer_on_the_way(case):
    make, name = FOUND[case]
    network = make()
    assert models.classifier_of(network, (3, 32, 32)) == name
    model = attach(network, 7, branches=("B1",), input_size=32, verbose=False)
    assert model.summary.classifier == name
    assert model.summary.branches["B1"].trunk_blocks == (1,), "inner layers of as many outputs are in the branch"
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 2, 7)


@pytest.mark.parametrize("case", MISSING)
def test_a_network_without_one_gets_branches_but_no_other_classes(case):
    make, message = MISSING[case]
    network = make()
    with pytest.raises(ValueError, match=f"no classifier whose input.*: .*{message}.*Give it an nn.Linear"):
        models.classifier_of(network, (3, 32, 32))
    with pytest.raises(ValueError, match=f"gives 5 logits, not 7.*{message}.*Build it with 7 classes"):
        attach(network, 7, input_size=32, verbose=False)
    model = attach(network, branches=("B1",), input_size=32, verbose=False)
    assert model.summary.branches["B1"].trunk_blocks[0] == 1, "inner layers of as many outputs are in the branch"
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 2, WIDTH)
