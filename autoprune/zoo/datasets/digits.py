"""Handwritten digits, real and shipped with scikit-learn: 1,797 grey 8×8 images of ten classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from autoprune.task import Data

__all__ = ["digits"]

# Train, validation; the rest is the test split
_SHARES = (0.6, 0.2)
# Of the split: every user sees the same images in the same parts
_SEED = 20240607


def digits() -> Data:
    """Images (1, 8, 8) float32, normalised by the training split's mean and deviation, with int64
    labels.

    The split is fixed and stratified by class: 1,074 to train, 355 to validate, 368 to test
    (Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits, its test part).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    train, validation, test = _stratified_split(labels)
    mean, deviation = images[train].mean(), images[train].std()
    images = (images - mean) / deviation
    return Data(*(TensorDataset(images[part], labels[part]) for part in (train, validation, test)))


def _stratified_split(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the three splits, each with the same share of every class."""
    generator = torch.Generator().manual_seed(_SEED)
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        first, second = (int(share * len(members)) for share in _SHARES)
        for part, indices in zip(
            parts, members.split([first, second, len(members) - first - second]), strict=True
        ):
            part.append(indices)
    train, validation, test = (torch.cat(part).sort().values for part in parts)
    return train, validation, test
