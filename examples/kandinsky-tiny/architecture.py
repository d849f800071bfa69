"""The networks, image processor and schedulers of kandinsky-tiny: the hub's kinds of blocks, made small."""

import torch
from diffusers import DDPMScheduler, PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, VQModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

EMBED = 64  # the width that CLIP text, CLIP vision, prior and UNet share (1280 on the hub)
PIXELS = 64  # side of a picture (224 for the hub's CLIP, 512 or 768 for its decoder)
TOKENS = 77
START_OF_TEXT, END_OF_TEXT = 49406, 49407


def text_encoder() -> CLIPTextModelWithProjection:
    """CLIP text, pooled at the first <|endoftext|>; padding is <|endoftext|> too, as in the hub's tokenizer."""
    config = CLIPTextConfig(
        vocab_size=END_OF_TEXT + 1,
        hidden_size=EMBED,
        intermediate_size=4 * EMBED,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=EMBED,
        hidden_act="gelu",
        bos_token_id=START_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
    )
    return CLIPTextModelWithProjection(config)


def image_encoder() -> CLIPVisionModelWithProjection:
    """CLIP vision: a ViT of 64 patches."""
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=PIXELS,
        patch_size=8,
        projection_dim=EMBED,
        hidden_act="gelu",
    )
    return CLIPVisionModelWithProjection(config)


def image_processor() -> CLIPImageProcessorPil:
    """The PIL image processor: bicubic to 64 px, centre crop, CLIP's mean and std."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}, do_convert_rgb=True
    )


def prior(generator: torch.Generator) -> PriorTransformer:
    """The prior; its positions and its query token start small but not at zero, where diffusers leaves them."""
    model = PriorTransformer(
        num_attention_heads=4,
        attention_head_dim=32,
        num_layers=4,
        embedding_dim=EMBED,
        num_embeddings=TOKENS,
        additional_embeddings=4,
        dropout=0.0,
    )
    with torch.no_grad():
        model.positional_embedding.normal_(0.0, 0.02, generator=generator)
        model.prd_embedding.normal_(0.0, 0.02, generator=generator)
        model.clip_std.fill_(1.0)
    return model


def movq() -> VQModel:
    """MoVQ with f=4 (f=8 on the hub): a 64 px picture is 16x16x4 latents."""
    return VQModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 64),  # SpatialNorm has 32 groups, so widths are multiples of 32
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=1,
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=4096,
        norm_num_groups=32,
        norm_type="spatial",
        sample_size=PIXELS,
    )


def unet() -> UNet2DConditionModel:
    """The decoder's UNet, conditioned on the CLIP image embedding alone; 8 outputs: prediction and variance."""
    return UNet2DConditionModel(
        sample_size=PIXELS // 4,
        in_channels=4,
        out_channels=8,
        block_out_channels=(32, 96),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=EMBED,
        encoder_hid_dim=EMBED,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
    )


def prior_scheduler() -> UnCLIPScheduler:
    """As on the hub."""
    return UnCLIPScheduler(
        variance_type="fixed_small_log",
        num_train_timesteps=1000,
        clip_sample=True,
        clip_sample_range=5.0,
        prediction_type="sample",
    )


def decoder_scheduler() -> DDPMScheduler:
    """The hub's betas; v-prediction, because epsilon learns high noise badly at this size."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
    )
