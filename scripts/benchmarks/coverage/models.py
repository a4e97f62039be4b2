"""The models of benchmarks/coverage: every one random, built from code or a config, with small
inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from torch import nn

from autoprune.task import Inputs
from scripts.benchmarks.coverage import own


@dataclass(frozen=True)
class Case:
    """One model. `keep`: output layers that Torch-Pruning is told to leave; others that make
    outputs are found.

    `raw`: modules whose outputs are compared besides the model's own (those of detectors are few
    and discrete).
    """

    name: str
    family: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    keep: tuple[str, ...] = ()
    raw: tuple[str, ...] = ()
    export: bool = False


EXPORTED = {
    *(
        "resnet18",
        "densenet121",
        "mobilenet_v3_small",
        "shufflenet_v2_x0_5",
        "vit_b_16",
        "swin_t",
        "convnext_tiny",
    ),
    *(
        "deeplabv3_mobilenet_v3_large",
        "ssdlite320_mobilenet_v3_large",
        "r3d_18",
        "timm/deit_tiny_patch16_224",
    ),
    *(
        "timm/mobilevit_s",
        "hf/bert",
        "hf/llama",
        "own/lstm_2",
        "own/gru_1",
        "own/encoder",
        "own/decoder",
    ),
    *(
        "own/fused_qkv",
        "own/mixer",
        "own/unet",
        "own/yolo",
        "own/conv1d",
        "own/conv3d",
        "own/weight_norm",
    ),
    *("own/pixel_shuffle", "own/shared_weights", "own/two_inputs"),
}


def cases() -> list[Case]:
    """Every model, in the order of the table."""
    found = [
        *classifiers(),
        *segmentation(),
        *detection(),
        *video(),
        *timm_models(),
        *hugging_face(),
        *owned(),
    ]
    return [
        Case(c.name, c.family, c.build, c.inputs, c.keep, c.raw, c.name in EXPORTED)
        for c in (*found, *scale())
    ]


def case(name: str) -> Case:
    """The case with this name."""
    return next(each for each in cases() if each.name == name)


def image(size: int, batch: int = 2) -> Callable[[], Inputs]:
    return lambda: Inputs.of(torch.randn(batch, 3, size, size))


def tokens(*shape: int, words: int = 40) -> Callable[[], Inputs]:
    return lambda: Inputs.of(torch.randint(0, words, shape))


def floats(*shapes: tuple[int, ...]) -> Callable[[], Inputs]:
    return lambda: Inputs.of(tuple(torch.randn(shape) for shape in shapes))


def classifiers() -> Iterator[Case]:
    """All of torchvision's, without pretrained weights and auxiliary heads."""
    sizes = {"inception_v3": 96, "alexnet": 96, "vit_b_16": 224, "vit_b_32": 224, "maxvit_t": 224}
    for name in torchvision.models.list_models(module=torchvision.models):
        options: dict[str, Any] = {"weights": None}
        size = sizes.get(name, 64)
        if name in ("googlenet", "inception_v3"):
            options |= {"aux_logits": False, "init_weights": False}
        if name.startswith(("vit_l", "vit_h")):
            size = options["image_size"] = 128 if name == "vit_l_32" else 112
        if name.startswith("swin"):
            size = 256 if "v2" in name else 224
        keep = ("classifier.1",) if name.startswith("squeezenet") else ()
        yield Case(
            name,
            "classification",
            partial(torchvision.models.get_model, name, **options),
            image(size),
            keep,
        )


def segmentation() -> Iterator[Case]:
    for name in torchvision.models.list_models(module=torchvision.models.segmentation):
        keep = (
            ("classifier.low_classifier", "classifier.high_classifier")
            if "lraspp" in name
            else ("classifier.4",)
        )
        build = partial(torchvision.models.get_model, name, weights=None, weights_backbone=None)
        yield Case(name, "segmentation", build, image(64), keep)


def detection() -> Iterator[Case]:
    """`keep` as Torch-Pruning's own example has it
    (examples/torchvision_models/torchvision_pruning.py)."""
    rpn = ("model.rpn.head.cls_logits", "model.rpn.head.bbox_pred")
    keeps = {
        "ssd": ("model.head",),
        "fasterrcnn": (*rpn, "model.backbone.fpn", "model.roi_heads"),
        "fcos": tuple(
            f"model.head.{head}"
            for head in (
                "classification_head.cls_logits",
                "regression_head.bbox_reg",
                "regression_head.bbox_ctrness",
            )
        ),
        "keypointrcnn": (
            *rpn,
            "model.backbone.fpn.layer_blocks",
            *(
                f"model.roi_heads.{head}"
                for head in ("box_head", "box_predictor", "keypoint_predictor")
            ),
        ),
        "maskrcnn": (*rpn, "model.roi_heads.box_predictor", "model.roi_heads.mask_predictor"),
        "retinanet": (
            "model.head.classification_head.cls_logits",
            "model.head.regression_head.bbox_reg",
        ),
    }
    for name in torchvision.models.list_models(module=torchvision.models.detection):
        options: dict[str, Any] = {"weights": None, "weights_backbone": None}
        if not name.startswith("ssd"):
            options |= {"min_size": 128, "max_size": 160}
        # random heads are sure of nothing, and without detections some layers would never run
        if "rcnn" in name:
            options |= {"box_score_thresh": 0.001, "box_detections_per_img": 5}
        keep = next(names for start, names in keeps.items() if name.startswith(start))
        raw = (
            ("model.rpn.head", "model.roi_heads.box_predictor")
            if "rcnn" in name
            else ("model.head",)
        )
        yield Case(name, "detection", partial(detector, name, **options), image(128), keep, raw)


class Detector(nn.Module):
    """A torchvision detector, fed with one batch of images instead of a list."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> Any:
        return self.model(list(images.unbind(0)))


def detector(name: str, **options: Any) -> nn.Module:
    return Detector(torchvision.models.get_model(name, **options))


def video() -> Iterator[Case]:
    """Torchvision's video models, and RAFT as an extra."""
    shapes = {"s3d": (16, 224, 224), "mvit_v2_s": (16, 224, 224), "swin3d_t": (4, 64, 64)}
    for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "swin3d_t", "mvit_v2_s"):
        shape = (2, 3, *shapes.get(name, (4, 32, 32)))
        whole = ("classifier.1",) if name == "s3d" else ()
        yield Case(
            name,
            "video",
            partial(torchvision.models.get_model, name, weights=None),
            floats(shape),
            whole,
        )
    keep = ("corr_block", "update_block", "mask_predictor")
    build = partial(torchvision.models.get_model, "raft_small", weights=None)
    yield Case(
        "raft_small", "optical flow", build, floats((2, 3, 128, 128), (2, 3, 128, 128)), keep
    )


def timm_models() -> Iterator[Case]:
    sizes = {"convnext_tiny": 64, "mobilevit_s": 64, "mobilevitv2_100": 64}
    for name in (
        *(
            "convnext_tiny",
            "deit_tiny_patch16_224",
            "swin_tiny_patch4_window7_224",
            "maxvit_tiny_tf_224",
        ),
        *("mobilevit_s", "mobilevitv2_100", "efficientformer_l1", "mixer_s16_224"),
    ):
        yield Case(f"timm/{name}", "timm", partial(timm_model, name), image(sizes.get(name, 224)))


def timm_model(name: str) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def hugging_face() -> Iterator[Case]:
    def text() -> Inputs:
        mask = torch.ones(2, 12, dtype=torch.long)
        return Inputs.of({"input_ids": torch.randint(0, 500, (2, 12)), "attention_mask": mask})

    pixels = lambda: Inputs.of({"pixel_values": torch.randn(2, 3, 64, 64)})  # noqa: E731
    for name in ("bert", "distilbert", "llama", "gpt2"):
        keep = {"llama": ("lm_head",), "gpt2": ("lm_head",)}.get(name, ("classifier",))
        yield Case(f"hf/{name}", "hugging face", partial(hf_model, name), text, keep)
    yield Case("hf/vit", "hugging face", partial(hf_model, "vit"), pixels, ("classifier",))


def hf_model(name: str) -> nn.Module:
    import transformers as hf

    usual: dict[str, Any] = {
        "hidden_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    }
    words = {"vocab_size": 500, "max_position_embeddings": 64}
    if name == "bert":
        return hf.BertForSequenceClassification(hf.BertConfig(**usual, **words, num_labels=10))
    if name == "vit":
        return hf.ViTForImageClassification(hf.ViTConfig(**usual, image_size=64, num_labels=10))
    if name == "distilbert":
        config = hf.DistilBertConfig(
            **words, dim=256, n_layers=3, n_heads=4, hidden_dim=1024, num_labels=10
        )
        return hf.DistilBertForSequenceClassification(config)
    if name == "gpt2":
        sizes = {"vocab_size": 500, "n_positions": 64, "n_embd": 256, "n_layer": 3, "n_head": 4}
        return hf.GPT2LMHeadModel(
            hf.GPT2Config(**sizes, use_cache=False, bos_token_id=0, eos_token_id=0)
        )
    grouped = {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**(usual | words | grouped), use_cache=False))


def owned() -> Iterator[Case]:
    both = {"bidirectional": True, "num_layers": 2, "batch_first": True}
    for name, kind, options in (
        *[(f"lstm_{n}", nn.LSTM, {"num_layers": n, "batch_first": n != 2}) for n in (1, 2, 3)],
        *[(f"gru_{n}", nn.GRU, {"num_layers": n, "batch_first": n != 2}) for n in (1, 2, 3)],
        *[("lstm_bidirectional", nn.LSTM, both), ("gru_bidirectional", nn.GRU, both)],
        ("lstm_projection", nn.LSTM, {"proj_size": 24, "num_layers": 2, "batch_first": True}),
    ):
        yield Case(
            f"own/{name}", "recurrent", partial(own.Recurrent, kind, **options), tokens(3, 9)
        )
    sequence, memory = (3, 9, 16), (3, 7, 12)
    pairs = lambda: Inputs.of((torch.randint(0, 40, (3, 9)), torch.randint(0, 40, (3, 7))))  # noqa: E731
    yield Case("own/encoder", "transformer", own.Encoder, floats(sequence))
    yield Case(
        "own/encoder_norm_first",
        "transformer",
        partial(own.Encoder, norm_first=True),
        floats(sequence),
    )
    yield Case("own/decoder", "transformer", own.Decoder, floats(sequence, memory))
    yield Case("own/seq2seq", "transformer", own.Seq2Seq, pairs)
    yield Case("own/fused_qkv", "transformer", own.FusedNet, floats(sequence))
    yield Case("own/mixer", "mixer", own.Mixer, image(32))
    yield Case("own/unet", "convolutional", own.UNet, image(32))
    yield Case("own/yolo", "convolutional", own.Yolo, image(32))
    yield Case("own/conv1d", "convolutional", own.conv1d, floats((2, 4, 24)))
    yield Case("own/conv3d", "convolutional", own.conv3d, floats((2, 3, 4, 8, 8)))
    yield Case("own/weight_norm", "parametrised", partial(own.normed, "weight"), image(16))
    yield Case("own/spectral_norm", "parametrised", partial(own.normed, "spectral"), image(16))
    yield Case("own/pixel_shuffle", "convolutional", own.pixel_shuffle, image(8), ("6",))
    yield Case("own/shared_weights", "shared", own.SharedWeights, tokens(3, 9))
    yield Case("own/two_inputs", "several inputs", own.TwoInputs, two_inputs)


def two_inputs() -> Inputs:
    return Inputs.of({"image": torch.randn(2, 3, 16, 16), "table": torch.randn(2, 7)})


def scale() -> Iterator[Case]:
    """Large ones; efficientnet_v2_l is among the classifiers."""
    wide = partial(own.Encoder, 768, 12, 12, 3072)
    yield Case("own/encoder_12x768", "scale", wide, floats((2, 16, 16)))
    yield Case("own/residual_1000", "scale", own.Thousand, image(16))
