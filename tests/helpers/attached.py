"""Small networks to attach branches to, and what must hold of each."""

import torch
from torch import nn


def conv(before, after, stride=1):
    return nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)


def plain(num_classes=5):
    """A network as people write them: four stages, each behind a pooling."""
    layers = [*conv(3, 8), nn.MaxPool2d(2), *conv(8, 8), *conv(8, 8), nn.MaxPool2d(2), *conv(8, 16), *conv(16, 16)]
    layers += [nn.MaxPool2d(2), *conv(16, 16), *conv(16, 16), *conv(16, 16)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, num_classes))


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def check_whole(network, model, x):
    """What every attached model must do: leave the network alone, run, train every branch, and strip bit for bit."""
    K = model.summary.num_classes
    plain_network = model.strip()
    assert type(plain_network) is type(network)
    assert list(plain_network.state_dict()) == list(network.state_dict())
    assert not any(module._forward_hooks for part in (network, plain_network) for module in part.modules())
    with torch.no_grad():
        logits_MBK = model.eval()(x)
        assert logits_MBK.shape == (len(model.branch_names), len(x), K)
        assert torch.equal(plain_network.eval()(x), logits_MBK[0])
    model.train()(x).square().sum().backward()
    for name, parameter in model.branches.named_parameters():
        assert parameter.grad is not None, name


class Shared(nn.Module):
    """One module in two places."""

    def __init__(self):
        super().__init__()
        self.stem, self.twice, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.twice(self.twice(self.stem(x))).mean((2, 3)))
