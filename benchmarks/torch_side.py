"""PyTorch's side: the same networks, losses and optimisers, written as its users write them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn

from wsjax.data.datasets import REPORT_MEAN, REPORT_STD

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, channels: int, features: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(features)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != features:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, features, 1, stride, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps images [B, C, H, W]."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


def resnet18(width: int, stem_pool: bool, classes: int = 10) -> nn.Module:
    """ResNet-18 for small images, in channels-last layout, which is PyTorch's faster one on a CPU."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    if stem_pool:
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels = width
    for stage in range(4):
        for block in range(2):
            layers.append(Block(channels, width * 2**stage, 2 if stage and not block else 1))
            channels = width * 2**stage
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers).to(DEVICE).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def mlp(hidden: Sequence[int], inputs: int = 3072, classes: int = 10) -> nn.Module:
    """The study's MLP; logistic regression without hidden layers."""
    sizes = (inputs, *hidden)
    layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.Tanh())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], classes)).to(DEVICE)


def tensors(
    images: np.ndarray, labels: np.ndarray, std: Sequence[float] = REPORT_STD
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images normalised beforehand as float32 [N, C, H, W], channels last in memory; int64 labels."""
    mean, scale = (torch.tensor(values)[: images.shape[3]] for values in (REPORT_MEAN, std))
    inputs = ((torch.from_numpy(images) / 255 - mean) / scale).permute(0, 3, 1, 2)
    return inputs.to(DEVICE), torch.from_numpy(labels).long().to(DEVICE)


class OneByOne(torch.utils.data.Dataset):
    """What torchvision's CIFAR10 with ToTensor and Normalize does for every image: the report's data set.

    An image is a picture of Pillow first; channel statistics become tensors, and are checked, for each image.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self.images, self.labels = images, labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        picture = Image.fromarray(self.images[index])
        return _normalised(_to_tensor(picture), REPORT_MEAN, REPORT_STD), self.labels[index]


def _to_tensor(picture: Image.Image) -> torch.Tensor:
    """A picture as float32 [C, H, W] in [0, 1]."""
    pixels = torch.from_numpy(np.array(picture))
    return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)


def _normalised(image: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """A normalised copy of an image."""
    means, scales = (torch.as_tensor(values, dtype=image.dtype).view(-1, 1, 1) for values in (mean, std))
    if (scales == 0).any():
        raise ValueError(f"a standard deviation is 0: {std}")
    return image.clone().sub_(means).div_(scales)


def loader(images: np.ndarray, labels: np.ndarray, batch_size: int, workers: int = 0) -> Iterable[Any]:
    """A DataLoader as the report's, in this process or with workers that live on from epoch to epoch.

    Workers are spawned, since this process has threads, which a fork would not survive.
    """
    data = OneByOne(images, labels)
    spawned: dict[str, Any] = {"num_workers": workers, "multiprocessing_context": "spawn", "persistent_workers": True}
    return torch.utils.data.DataLoader(data, batch_size, shuffle=True, **(spawned if workers else {}))


def step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    precision: str = "float32",
) -> torch.Tensor:
    """One training step, in bfloat16 by autocast."""
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bfloat16"):
        loss = nn.functional.cross_entropy(net(inputs), targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss


def epoch(net: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Any], precision: str = "float32") -> None:
    """One pass over batches."""
    net.train()
    for inputs, targets in batches:
        step(net, optimizer, inputs.to(DEVICE), targets.to(DEVICE), precision)
    synchronize()


def compiled(
    net: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[Any], precision: str = "float32"
) -> tuple[nn.Module, float]:
    """The network under torch.compile, and the seconds of its first steps: give a batch of every size to come."""
    begin = time.perf_counter()
    fast = cast(nn.Module, torch.compile(net, dynamic=False))
    epoch(fast, optimizer, batches, precision)
    return fast, time.perf_counter() - begin


def shuffled(
    inputs: torch.Tensor, targets: torch.Tensor, batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of tensors in memory, in a new order."""
    for rows in torch.randperm(len(targets), device=inputs.device).split(batch_size):
        yield inputs[rows], targets[rows]


@torch.no_grad()
def accuracy(net: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, batch_size: int) -> float:
    """Test accuracy, by running statistics."""
    net.eval()
    pairs = zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
    return float(sum((net(x).argmax(1) == y).sum() for x, y in pairs)) / len(targets)


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    """The study's SGD."""
    return torch.optim.SGD(net.parameters(), 0.001)


def use_tensor_cores() -> None:
    """As XLA does by itself: float32 products in TF32, and for each convolution the kernel that measured best."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def synchronize() -> None:
    """Waits for the device."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def run(function: Callable[..., Any], *arguments: Any) -> Callable[[], None]:
    """The function on the arguments, to its end."""

    def call() -> None:
        function(*arguments)
        synchronize()

    return call
