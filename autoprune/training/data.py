"""A study's `data` -> Data: bundled sets, torchvision's, a folder of images, or the user's own
function."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from autoprune import plugins
from autoprune.errors import StudyError, nearest
from autoprune.task import Data
from autoprune.training.references import call_factory, name_errors, resolve, split

__all__ = ["build", "check_data", "relative"]

KEY = "task.data"
# Of the validation part that is carved out of training data: the same whatever the study's seed
_SEED = 20240607
# The share of it where none is asked for
_CARVED = 0.1
_SPLITS = ("train", "validation", "test")


def build(given: object, folders: Sequence[Path]) -> Data:
    """The data that a study names.

    - `zoo:digits`;
    - `torchvision:CIFAR10` with args root, and optionally download, validation (the share of the
      training part to validate on, 0.1), size (pixels to resize and crop to), mean and std (else
      taken from the training part);
    - a folder of images with one sub-folder for each class, or with train/ and optionally
      validation/ and test/ above these; the same args but root, size 224 where none is given;
    - `my_module:function` that returns a dictionary with train, validation and optionally test, or
      Data.

    Relative folders are looked for in `folders`. Raises StudyError.
    """
    reference, args = split(given, KEY)
    if ":" not in reference:
        return check_data(_image_folder(reference, args, folders))
    prefix, _, name = reference.partition(":")
    if prefix == "torchvision":
        return check_data(_torchvision(name, args, folders))
    return check_data(
        call_factory(resolve("dataset", reference, folders, KEY), args, reference, KEY)
    )


def check_data(given: object) -> Data:
    """Data, or a mapping with its splits, as Data. Raises StudyError where train or validation are
    missing or empty."""
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in _SPLITS]
        if unknown:
            raise StudyError(
                f"unknown split {unknown[0]!r}{nearest(str(unknown[0]), _SPLITS)}; known: "
                f"{', '.join(_SPLITS)}",
                key=KEY,
            )
        given = Data(given.get("train"), given.get("validation"), given.get("test"))
    if not isinstance(given, Data):
        raise StudyError(
            "needs a dictionary {train, validation[, test]} or autoprune's Data, got a "
            f"{type(given).__name__}",
            key=KEY,
        )
    for name in _SPLITS:
        part = getattr(given, name)
        if part is None and name != "test":
            raise StudyError(
                f"there is no {name} data; give train and validation, each a data set or a data "
                "loader",
                key=KEY,
            )
        if isinstance(part, Iterator):
            raise StudyError(
                f"the {name} data is an iterator, used up after one epoch; give a data set or a "
                "data loader",
                key=KEY,
            )
        if isinstance(part, tuple) and part and all(isinstance(name, Tensor) for name in part):
            raise StudyError(
                f"the {name} data is a tuple of tensors; give TensorDataset(inputs, targets)",
                key=KEY,
            )
        if _length(part) == 0:
            raise StudyError(f"the {name} data is empty", key=KEY)
    return given


def _length(part: Any) -> int | None:
    """None where it is not known: a loader, or a chain, of streams has the method, and raises."""
    try:
        return len(part)
    except TypeError:
        return None


def _torchvision(name: str, args: dict[str, Any], folders: Sequence[Path]) -> Data:
    """Train and test as torchvision splits them; its own validation part where it has one, else one
    carved out."""
    from torchvision import datasets

    known = [name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name, None))]
    if name not in known:
        raise StudyError(f"torchvision has no data set {name!r}{nearest(name, known)}", key=KEY)
    factory = getattr(datasets, name)
    parameters = inspect.signature(factory).parameters
    if "train" in parameters:
        wanted: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in parameters:
        wanted = {
            "train": {"split": "train"},
            "test": {"split": "test"},
            "validation": {"split": "val"},
        }
    else:
        raise StudyError(
            f"torchvision:{name} has no train and test part; write a function my_module:build "
            "that gives them",
            key=KEY,
        )
    pictures, carve = _Pictures.take(args, size=None), args.pop("validation", None)
    if "root" not in args:
        raise StudyError(
            f"torchvision:{name} needs args: {{root: FOLDER}}, and download: true to fetch it",
            key=f"{KEY}.args",
        )
    args |= {"root": str(relative(args["root"], folders)), "transform": pictures}
    parts = {}
    for part, which in wanted.items():
        try:
            parts[part] = call_factory(factory, args | which, f"torchvision:{name}", KEY)
        except StudyError as error:
            # It has no split of that name
            if part == "train" or "for argument split" not in str(error.__cause__):
                raise
    pictures.measure(parts["train"])
    return _carve_validation(parts, carve)


def _image_folder(name: str, args: dict[str, Any], folders: Sequence[Path]) -> Data:
    from torchvision.datasets import ImageFolder

    folder = relative(name, folders)
    if not folder.is_dir():
        known = [f"zoo:{bundled}" for bundled in plugins.names("dataset")]
        raise StudyError(
            f"no folder {str(folder)!r} with images{nearest('zoo:' + name, known)}", key=KEY
        )
    pictures, carve = _Pictures.take(args, size=224), args.pop("validation", None)
    if args:
        raise StudyError(
            f"an image folder has no argument {next(iter(args))!r}; known: validation, size, "
            "mean, std",
            key=f"{KEY}.args",
        )
    places = {"train": folder}
    if (folder / "train").is_dir():
        spellings = dict(
            train="train",
            valid="validation",
            val="validation",
            validation="validation",
            test="test",
        )
        places = {
            part: folder / name for name, part in spellings.items() if (folder / name).is_dir()
        }
    with name_errors(KEY, name):
        parts = {part: ImageFolder(str(place), pictures) for part, place in places.items()}
        pictures.measure(parts["train"])
    for part, images in parts.items():
        if images.classes != parts["train"].classes:
            raise StudyError(
                f"the classes of {part} {images.classes} are not those of train "
                f"{parts['train'].classes}",
                key=KEY,
            )
    return _carve_validation(parts, carve)


class _Pictures:
    """Transform of a picture to a float32 tensor (C, H, W): resized and cropped to `size` pixels,
    and normalised."""

    def __init__(self, size: Any, mean: Any, std: Any) -> None:
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise StudyError(f"size is a number of pixels, got {size!r}", key=f"{KEY}.args.size")
        if (mean is None) != (std is None):
            raise StudyError(
                "mean and std go together; give both, one number for each channel, or neither",
                key=f"{KEY}.args",
            )
        self.size, self.mean, self.std = size, mean, std

    @classmethod
    def take(cls, args: dict[str, Any], size: int | None) -> _Pictures:
        """Take its own out of `args`, in place."""
        return cls(args.pop("size", size), args.pop("mean", None), args.pop("std", None))

    def __call__(self, picture: Any) -> Tensor:
        from torchvision.transforms import functional

        if self.size:
            picture = functional.center_crop(
                functional.resize(picture, self.size), [self.size, self.size]
            )
        tensor: Tensor = functional.to_tensor(picture)
        return tensor if self.mean is None else functional.normalize(tensor, self.mean, self.std)

    def measure(self, images: Any) -> None:
        """Unless given, take each channel's mean and deviation from up to 500 of `images`, which
        this transforms."""
        if len(images) == 0:
            raise StudyError("the train data is empty", key=KEY)
        if self.mean is None:
            picked = torch.linspace(0, len(images) - 1, min(len(images), 500)).long().tolist()
            pixels = torch.cat([images[index][0].flatten(1) for index in picked], dim=1).double()
            self.mean, self.std = (
                pixels.mean(dim=1).tolist(),
                pixels.std(dim=1).clamp(min=1e-6).tolist(),
            )


def _carve_validation(parts: dict[str, Any], share: Any) -> Data:
    """Data; without a validation part, or where a share is asked for, a fixed share of the training
    part is it."""
    if share is not None and (
        isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share < 1
    ):
        raise StudyError(
            f"the share to validate on must be between 0 and 1, got {share!r}",
            key=f"{KEY}.args.validation",
        )
    if share is None and "validation" in parts:
        return Data(**parts)
    count = len(parts["train"])
    held = max(1, round((share or _CARVED) * count))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SEED)).tolist()
    carved = {
        "validation": Subset(parts["train"], sorted(order[:held])),
        "train": Subset(parts["train"], sorted(order[held:])),
    }
    return Data(**parts | carved)


def relative(name: Any, folders: Sequence[Path]) -> Path:
    """A path as it is, or under the first of `folders` that holds it."""
    candidates = [Path(folder) / Path(str(name)).expanduser() for folder in (*folders, Path())]
    return next((path for path in candidates if path.exists()), candidates[0])
