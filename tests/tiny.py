"""Kandinsky 2.2 made tiny: checkpoints of width 16 in the hub's layout, and ten pictures of every awkward kind."""

import json
import shutil
from pathlib import Path

import torch
from diffusers import DDPMScheduler, PriorTransformer, UnCLIPScheduler, UNet2DConditionModel, VQModel
from PIL import Image
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

DATA = Path(__file__).parent.parent / "kcache" / "data"
WIDTH = 16
PIXELS = 32

LONG_CAPTION = "a very ripe strawberry beside " + ", ".join(f"{n} small green leaves" for n in range(1, 30))
"""More than the 77 tokens that CLIP takes."""


def make_prior(folder: Path) -> Path:
    """A prior's checkpoint: encoders, the real tokenizer, and a prior with statistics that are not 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        _text_encoder().save_pretrained(folder / "text_encoder")
        _image_encoder().save_pretrained(folder / "image_encoder")
        _prior().save_pretrained(folder / "prior")
    processor = CLIPImageProcessorPil(size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS})
    processor.save_pretrained(folder / "image_processor")
    UnCLIPScheduler(variance_type="fixed_small_log", clip_sample_range=5.0).save_pretrained(folder / "scheduler")
    shutil.copytree(DATA / "kandinsky-tiny" / "prior" / "tokenizer", folder / "tokenizer")
    return folder


def make_decoder(folder: Path) -> Path:
    """A decoder's checkpoint: MoVQ that shrinks by 4, a UNet of Kandinsky's blocks, noise prediction."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        _movq().save_pretrained(folder / "movq")
        _unet().save_pretrained(folder / "unet")
    DDPMScheduler(beta_start=0.00085, beta_end=0.012, clip_sample=False).save_pretrained(folder / "scheduler")
    return folder


def make_pictures(folder: Path) -> Path:
    """Ten pictures with ``metadata.jsonl``; the captions cover long, empty, several and not ASCII."""
    rows: list[tuple[str, str | list[str]]] = [
        ("apple.webp", "red apple"),
        ("empty-caption.webp", ""),
        ("flat.png", "a turtle, cut flat"),
        ("grey.png", "an elephant in shades of grey"),
        ("long-caption.webp", LONG_CAPTION),
        ("more/möhre.png", "eine Möhre, 胡萝卜 🥕"),
        ("more/small.png", "a bus that is smaller than the encoder's picture"),
        ("see-through.png", "a ghost"),
        ("turned.jpg", "a rocket, photographed with the camera held upright"),
        ("two-captions.webp", ["a fox", "the face of a fox, orange and white, with a black nose"]),
    ]
    (folder / "more").mkdir(parents=True)
    for name, code in (
        ("apple", "1f34e"),
        ("empty-caption", "26f5"),
        ("long-caption", "1f353"),
        ("two-captions", "1f98a"),
    ):
        shutil.copy(DATA / "pictures" / f"{code}.webp", folder / f"{name}.webp")
    _picture("1f422").crop((10, 60, 247, 161)).save(folder / "flat.png")
    _picture("1f418").convert("L").crop((30, 0, 200, 255)).save(folder / "grey.png")
    _picture("1f955").resize((97, 60)).save(folder / "more/möhre.png")
    _picture("1f68c").resize((20, 27)).save(folder / "more/small.png")
    _see_through("1f47b").save(folder / "see-through.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: the picture is stored lying on its side
    _picture("1f680").convert("RGB").crop((0, 40, 256, 200)).save(folder / "turned.jpg", quality=90, exif=exif)
    lines = (json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in rows)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def _picture(code: str) -> Image.Image:
    return Image.open(DATA / "pictures" / f"{code}.webp")


def _see_through(code: str) -> Image.Image:
    """Colour below every degree of transparency, so that dropping alpha and a white ground differ everywhere."""
    image = _picture(code).convert("RGB")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def _text_encoder() -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=WIDTH,
        hidden_act="gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
        initializer_range=0.2,
    )
    return CLIPTextModelWithProjection(config)


def _image_encoder() -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PIXELS,
        patch_size=8,
        projection_dim=WIDTH,
        hidden_act="gelu",
        initializer_range=0.2,
    )
    return CLIPVisionModelWithProjection(config)


def _prior() -> PriorTransformer:
    model = PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=WIDTH, num_embeddings=77
    )
    with torch.no_grad():
        model.positional_embedding.normal_(0.0, 0.1)
        model.prd_embedding.normal_(0.0, 0.1)
        model.clip_mean.normal_(0.0, 0.5)
        model.clip_std.uniform_(0.5, 1.5)
    return model


def _movq() -> VQModel:
    return VQModel(
        block_out_channels=(32, 32, 32),  # SpatialNorm has 32 groups
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        vq_embed_dim=4,
        num_vq_embeddings=16,
        norm_type="spatial",
        sample_size=PIXELS,
    )


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=PIXELS // 4,
        in_channels=4,
        out_channels=8,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        cross_attention_dim=WIDTH,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="image_proj",
        addition_embed_type="image",
        addition_embed_type_num_heads=2,
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
    )
