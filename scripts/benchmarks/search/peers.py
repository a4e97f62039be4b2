"""The peers of benchmarks/search: Torch-Pruning and ModelOpt's FastNAS, used as their examples use
them."""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from autoprune.training.loop import recalibrate
from scripts.benchmarks.repair import copied
from scripts.benchmarks.search.cell import Cell, Missing, Refused, largest

FLOOR = 0.95  # of any layer is the most that is removed where layers differ


def _torch_pruning(
    cell: Cell, make: Callable[[nn.Module, Any, float, dict[str, Any]], Any], steps: int
) -> nn.Module:
    """The largest net of one of its pruners that fits; `make(model, example, ratio, settings)` is
    the pruner."""
    try:
        from scripts.benchmarks.coverage.peer_settings import settings, settle
    except ImportError as error:
        raise Missing(f"not installed: {error}") from error

    def pruned(ratio: float) -> nn.Module:
        model = copied(cell.dense.model)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        given = settings(model, [cell.case.output], grouped=True)
        pruner = make(model, cell.dense.inputs.args[0], ratio, given)
        before = sum(each.numel() for each in model.parameters())
        for _ in range(steps):
            pruner.step()
        settle(model, pruner)
        if sum(each.numel() for each in model.parameters()) == before and ratio > 0.2:
            raise Refused("nothing was pruned")
        return model.eval()

    return cell.train(pruned(largest(cell, pruned)), cell.epochs)


def tp_l1(cell: Cell) -> nn.Module:
    """Torch-Pruning: the same share of every layer, by L1 (Li et al. 2017, arXiv:1608.08710)."""

    def make(model: nn.Module, example: Any, ratio: float, given: dict[str, Any]) -> Any:
        import torch_pruning as tp

        heads = {"prune_num_heads": True, "head_pruning_ratio": ratio} if given["num_heads"] else {}
        return tp.pruner.MagnitudePruner(
            model,
            example,
            tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=ratio,
            **given,
            **heads,
        )

    return _torch_pruning(cell, make, 1)


def tp_group(cell: Cell, steps: int = 5) -> nn.Module:
    """Torch-Pruning: group norms compared over the whole net (Fang et al. 2023, arXiv:2301.12900),
    in several steps."""

    def make(model: nn.Module, example: Any, ratio: float, given: dict[str, Any]) -> Any:
        import torch_pruning as tp

        return tp.pruner.GroupNormPruner(
            model,
            example,
            tp.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=FLOOR,
            iterative_steps=steps,
            **given,
        )

    return _torch_pruning(cell, make, steps)


def fastnas(cell: Cell, images: int = 500, divisor: int = 4) -> nn.Module:
    """ModelOpt's FastNAS; its limit on FLOPs is what is bisected. Its default divisor, 32, leaves
    small nets as is.

    Its score is the accuracy on `images` of the validation split, as its guide says. Steps of the
    divisor, of at most a sixteenth of the widest layers, keep the number of its evaluations where
    its default has it for wide nets.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import modelopt.torch.prune as mtp
            from modelopt.torch.prune.fastnas import FastNASConfig
    except ImportError as error:
        raise Missing(f"not installed: {error}") from error
    dense, task = cell.dense, cell.dense.task
    inputs, labels = (each[:images] for each in task.data.validation.tensors)
    checkpoint = cell.work / "fastnas.pth"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)

    def score(model: nn.Module) -> float:
        return float((model(inputs).argmax(1) == labels).double().mean())

    config = {"nn.Linear": {"feature_divisor": divisor}, "nn.Conv2d": {"channel_divisor": divisor}}
    rules = FastNASConfig().model_dump(by_alias=True)
    for kind, changed in config.items():
        rules[kind]["*"] |= changed
    for kind in rules:
        if "Norm" in kind and rules[kind] and "feature_divisor" in rules[kind]["*"]:
            rules[kind]["*"]["feature_divisor"] = divisor

    def pruned(share: float) -> nn.Module:
        model = copied(dense.model)
        batches = [
            args[0] for args, _, _ in itertools.islice(task.batches("train", seed=dense.seed), 8)
        ]
        quiet = io.StringIO()
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
        ):
            warnings.simplefilter("ignore")
            found, _ = mtp.prune(
                model,
                mode=[("fastnas", rules)],
                constraints={"flops": f"{100 * (1 - share):.4g}%"},
                dummy_input=dense.inputs.args[0],
                config={
                    "data_loader": batches,
                    "collect_func": lambda batch: batch,
                    "score_func": score,
                    "checkpoint": str(checkpoint),
                    "verbose": False,
                },
            )
        smaller: nn.Module = found.eval()
        recalibrate(smaller, task)
        return smaller

    return cell.train(pruned(largest(cell, pruned)), cell.epochs)


PEERS = {"tp_l1": tp_l1, "tp_group": tp_group, "fastnas": fastnas}
