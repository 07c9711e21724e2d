"""Models of other packages (the extra `wild`), as small as their configurations allow.

All are made with random weights: nothing is downloaded. Each function gives the model; its inputs
are a batch of images, token ids or whatever else stands beside it in the table.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

Inputs = Callable[[nn.Module, int], tuple[tuple[Any, ...], dict[str, Any]]]
WORDS = 99  # of every vocabulary


def images(*size: int) -> Inputs:
    """A batch of images or volumes."""
    return lambda _, batch: ((torch.randn(batch, *size),), {})


def pixels(*size: int) -> Inputs:
    """A batch of images by the name that transformers gives them."""
    return lambda _, batch: ((), {"pixel_values": torch.randn(batch, *size)})


def tokens(_: nn.Module, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Token ids, and a mask that leaves the last ones of the first sample out."""
    mask = torch.ones(batch, 16, dtype=torch.int64)
    mask[0, 12:] = 0
    return (), {"input_ids": torch.randint(2, WORDS, (batch, 16)), "attention_mask": mask}


def words_and_pixels(model: nn.Module, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Both."""
    _, named = tokens(model, batch)
    return (), {**named, "pixel_values": torch.randn(batch, 3, 32, 32)}


def smp(name: str, **options: Any) -> nn.Module:
    """segmentation_models_pytorch: two classes, no weights."""
    import segmentation_models_pytorch

    build = getattr(segmentation_models_pytorch, name)
    return build(encoder_weights=None, classes=2, **options)


def ultralytics(name: str) -> nn.Module:
    """The smallest of a family, from the configuration that the package holds."""
    from ultralytics import YOLO

    return YOLO(f"{name}.yaml").model


def transformers(name: str, config: str, **options: Any) -> nn.Module:
    """A model of a tiny configuration; "eager" attention is what most exports are of."""
    import transformers as package

    return getattr(package, name)(getattr(package, config)(**options))


TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def clip() -> nn.Module:
    """Two towers and their similarities."""
    return transformers(
        "CLIPModel", "CLIPConfig",
        text_config={**TINY, "vocab_size": WORDS, "max_position_embeddings": 16, "eos_token_id": 1},
        vision_config={**TINY, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )  # fmt: skip


def detr() -> nn.Module:
    """A ResNet, an encoder and a decoder of objects."""
    import transformers as package

    backbone = package.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage4"],
    )  # fmt: skip
    return transformers(
        "DetrForObjectDetection", "DetrConfig",
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=4,
        decoder_attention_heads=4, num_queries=10,
    )  # fmt: skip


def segformer() -> nn.Module:
    """A hierarchical transformer with a head of linear layers."""
    return transformers(
        "SegformerForSemanticSegmentation", "SegformerConfig",
        hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 4],
        decoder_hidden_size=16, num_labels=3,
    )  # fmt: skip


def whisper_encoder() -> nn.Module:
    """Speech: its encoder alone."""
    model = transformers(
        "WhisperModel", "WhisperConfig", vocab_size=WORDS, d_model=32, encoder_layers=2,
        decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_mel_bins=16, max_source_positions=40, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    return model.encoder


def diffusers(name: str, **options: Any) -> nn.Module:
    """A model of diffusers."""
    import diffusers as package

    return getattr(package, name)(**options)


BLOCKS = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}


def noise_and_time(_: nn.Module, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A noisy image, and how noisy it is."""
    return (torch.randn(batch, 3, 16, 16), torch.tensor(7)), {}


def noise_and_text(model: nn.Module, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same with the states of a text encoder."""
    args, _ = noise_and_time(model, batch)
    return (*args, torch.randn(batch, 5, 24)), {}


def monai(name: str, **options: Any) -> nn.Module:
    """A network of monai."""
    from monai.networks import nets

    return getattr(nets, name)(**options)


def facenet() -> nn.Module:
    """Embeddings of faces."""
    from facenet_pytorch import InceptionResnetV1

    return InceptionResnetV1(pretrained=None)


def efficientnet() -> nn.Module:
    """EfficientNet as many know it; its swish in memory-efficient form does not export."""
    from efficientnet_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-b0")


def open_clip(vision: dict[str, Any]) -> nn.Module:
    """Two towers of open_clip."""
    from open_clip.model import CLIP

    text = {"context_length": 16, "vocab_size": WORDS, "width": 32, "heads": 4, "layers": 2}
    return CLIP(16, vision, text)


def image_and_text(_: nn.Module, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An image and the ids of its text."""
    return (torch.randn(batch, 3, 32, 32), torch.randint(1, WORDS, (batch, 16))), {}


IMAGE = images(3, 64, 64)
VISION = {**TINY, "image_size": 32, "patch_size": 8}
BERT = {**TINY, "vocab_size": WORDS, "max_position_embeddings": 32}

WILD: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "smp:Unet": (partial(smp, "Unet", encoder_name="resnet18"), IMAGE),
    "smp:UnetPlusPlus": (partial(smp, "UnetPlusPlus", encoder_name="mobilenet_v2"), IMAGE),
    "smp:FPN": (partial(smp, "FPN", encoder_name="efficientnet-b0"), IMAGE),
    "smp:DeepLabV3Plus": (partial(smp, "DeepLabV3Plus", encoder_name="resnet18"), IMAGE),
    "smp:MAnet": (partial(smp, "MAnet", encoder_name="resnet18"), IMAGE),
    "smp:PSPNet": (partial(smp, "PSPNet", encoder_name="resnet18"), IMAGE),
    "smp:Segformer": (partial(smp, "Segformer", encoder_name="mit_b0"), IMAGE),
    "ultralytics:yolov8n": (partial(ultralytics, "yolov8n"), IMAGE),
    "ultralytics:yolo11n-seg": (partial(ultralytics, "yolo11n-seg"), IMAGE),
    "ultralytics:yolov8n-cls": (partial(ultralytics, "yolov8n-cls"), IMAGE),
    "ultralytics:yolo11n-pose": (partial(ultralytics, "yolo11n-pose"), IMAGE),
    "transformers:vit": (
        partial(transformers, "ViTForImageClassification", "ViTConfig", **VISION),
        pixels(3, 32, 32),
    ),
    "transformers:dinov2": (
        partial(
            transformers, "Dinov2Model", "Dinov2Config", hidden_size=32, num_hidden_layers=2,
            num_attention_heads=4, image_size=32, patch_size=8,
        ),
        pixels(3, 32, 32),
    ),
    "transformers:convnextv2": (
        partial(
            transformers, "ConvNextV2ForImageClassification", "ConvNextV2Config",
            hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1],
        ),
        pixels(3, 64, 64),
    ),
    "transformers:clip": (clip, words_and_pixels),
    "transformers:detr": (detr, pixels(3, 64, 64)),
    "transformers:segformer": (segformer, pixels(3, 64, 64)),
    "transformers:bert": (partial(transformers, "BertModel", "BertConfig", **BERT), tokens),
    "transformers:gpt2": (
        partial(
            transformers, "GPT2LMHeadModel", "GPT2Config", vocab_size=WORDS, n_positions=32,
            n_embd=32, n_layer=2, n_head=4, use_cache=False, bos_token_id=0, eos_token_id=0,
        ),
        tokens,
    ),
    "transformers:llama": (
        partial(
            transformers, "LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2,
            use_cache=False, **BERT,
        ),
        tokens,
    ),
    "transformers:whisper": (
        whisper_encoder,
        lambda _, batch: ((torch.randn(batch, 16, 80),), {}),
    ),
    "diffusers:UNet2DModel": (
        partial(
            diffusers, "UNet2DModel", sample_size=16, attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"), **BLOCKS,
        ),
        noise_and_time,
    ),
    "diffusers:UNet2DConditionModel": (
        partial(
            diffusers, "UNet2DConditionModel", sample_size=16, in_channels=3, out_channels=3,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=24,
            attention_head_dim=8, **BLOCKS,
        ),
        noise_and_text,
    ),
    "diffusers:AutoencoderKL": (
        partial(
            diffusers, "AutoencoderKL", down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2, **BLOCKS,
        ),
        images(3, 32, 32),
    ),
    "monai:UNet": (
        partial(
            monai, "UNet", spatial_dims=3, in_channels=1, out_channels=2,
            channels=(4, 8, 16), strides=(2, 2), num_res_units=2, norm="batch",
        ),
        images(1, 16, 16, 16),
    ),
    "monai:SegResNet": (
        partial(monai, "SegResNet", spatial_dims=3, init_filters=8), images(1, 16, 16, 16),
    ),
    "monai:DenseNet121": (
        partial(monai, "DenseNet121", spatial_dims=2, in_channels=1, out_channels=2),
        images(1, 64, 64),
    ),
    "monai:UNETR": (
        partial(
            monai, "UNETR", in_channels=1, out_channels=2, img_size=(32, 32, 32), feature_size=4,
            hidden_size=24, mlp_dim=32, num_heads=4,
        ),
        images(1, 32, 32, 32),
    ),
    "facenet-pytorch:InceptionResnetV1": (facenet, images(3, 160, 160)),
    "efficientnet-pytorch:b0": (efficientnet, IMAGE),
    "open_clip:ViT": (
        partial(open_clip, {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2,
                            "head_width": 8}),
        image_and_text,
    ),
    "open_clip:ResNet": (
        partial(open_clip, {"image_size": 32, "layers": (1, 1, 1, 1), "width": 16}),
        image_and_text,
    ),
}  # fmt: skip
