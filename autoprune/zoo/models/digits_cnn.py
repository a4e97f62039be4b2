"""A small residual network for 8×8 images, wide enough that its kernels, not call overhead, decide
its latency."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["digits_cnn"]


def digits_cnn(width: int = 64, hidden: int = 128, classes: int = 10) -> nn.Module:
    """An untrained classifier of grey 8×8 images, (N, 1, 8, 8) -> logits (N, `classes`).

    `stem` and `stage1` (a residual block with an identity path) work on `width` channels at 8×8,
    `stage2` (a residual block with a projection) on twice as many at 4×4; `head` is a hidden linear
    layer of `hidden` units, `fc` the classifier.
    """
    if min(width, hidden, classes) < 1:
        raise ValueError(
            f"width, hidden and classes must be at least 1, got {width}, {hidden}, {classes}"
        )
    return _DigitsCNN(width, hidden, classes)


class _Block(nn.Module):
    """relu(conv-bn-relu-conv-bn(x) + path(x)); identity path where it fits (He et al. 2015,
    arXiv:1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.path: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.path = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride)."""
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        result: Tensor = self.relu(inner + self.path(x))
        return result


class _DigitsCNN(nn.Module):
    def __init__(self, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stage1 = _Block(width, width, stride=1)
        self.stage2 = _Block(width, 2 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(2 * width, hidden), nn.ReLU())
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, 8, 8) -> (N, classes)."""
        logits: Tensor = self.fc(self.head(self.pool(self.stage2(self.stage1(self.stem(x))))))
        return logits
