"""Kandinsky 2.2 at full size with random weights: the configurations of the hub's checkpoints, for every benchmark."""

from typing import Any

from kcache.planning.kandinsky import PRIOR, UNET

CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "projection_dim": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
CLIP_VISION = {
    "hidden_size": 1664,
    "intermediate_size": 8192,
    "projection_dim": 1280,
    "num_hidden_layers": 48,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
}
MOVQ = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 256, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
    "up_block_types": ("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "num_vq_embeddings": 16384,
    "vq_embed_dim": 4,
    "norm_type": "spatial",
}


def models() -> dict[str, Any]:
    """The five models with random weights, on torch's current default device."""
    import diffusers
    import transformers

    return {
        "text": transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**CLIP_TEXT)),
        "vision": transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**CLIP_VISION)),
        "movq": diffusers.VQModel(**MOVQ),
        "prior": diffusers.PriorTransformer(**PRIOR),
        "unet": diffusers.UNet2DConditionModel(**UNET),
    }
