"""Pictures with captions, and Kandinsky 2.2 with random weights in the hub's layout: for programs that read both."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from architecture import CLIP_TEXT, CLIP_VISION, MOVQ, PRIOR, UNET
from decoder_setting import SMALL as SMALL_DECODER
from PIL import Image
from prior_setting import SMALL as SMALL_PRIOR

import kcache
from kcache.devices import default_device

DATA = Path(kcache.__file__).parent / "data"
SHAPES: dict[str, dict[str, Any]] = {
    "prior": {"text": CLIP_TEXT, "vision": CLIP_VISION, "prior": PRIOR},
    "decoder": {"vision": CLIP_VISION, "movq": MOVQ, "unet": UNET},
}
SMALL: dict[str, dict[str, Any]] = {"prior": SMALL_PRIOR, "decoder": SMALL_DECODER}
MAKERS: dict[str, tuple[str, Any]] = {
    "text": (
        "prior/text_encoder",
        lambda shape: transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**shape)),
    ),
    "vision": (
        "prior/image_encoder",
        lambda shape: transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**shape)),
    ),
    "prior": ("prior/prior", lambda shape: _trainable(diffusers.PriorTransformer(**shape))),
    "movq": ("decoder/movq", lambda shape: diffusers.VQModel(**shape)),
    "unet": ("decoder/unet", lambda shape: diffusers.UNet2DConditionModel(**shape)),
}


def write_models(stage: str, size: str, folder: Path, only: Collection[str] = tuple(MAKERS)) -> None:
    """The models that a stage needs, each made on the GPU if there is one and saved in fp32 before the next."""
    torch.manual_seed(0)
    change = SMALL[stage] if size == "small" else {}
    for name, shape in SHAPES[stage].items():
        if name not in only:
            continue
        place, make = MAKERS[name]
        with default_device():
            model = make(shape | change.get(name, {}))
        model.save_pretrained(folder / place)
        del model
    tiny = DATA / "kandinsky-tiny"
    for part in ("prior/tokenizer", "prior/scheduler", "decoder/scheduler", "prior/image_processor"):
        shutil.copytree(tiny / part, folder / part, dirs_exist_ok=True)
    _set_sides(folder / "prior" / "image_processor" / "preprocessor_config.json", CLIP_VISION["image_size"])


def write_pictures(count: int, side: int, folder: Path) -> None:
    """kcache's pictures as JPEG files of that side, over and over, with captions in metadata.jsonl.

    A caption names the picture and one to four others: 8 to 25 tokens, as captions of photos have.
    """
    folder.mkdir(parents=True)
    lines = (DATA / "pictures" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as metadata:
        for number in range(count):
            named = [rows[(number + place) % len(rows)] for place in range(2 + number % 4)]
            with Image.open(DATA / "pictures" / named[0]["file_name"]) as picture:
                resized = picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            resized.save(folder / f"{number:05}.jpg", quality=92)
            caption = "a picture of " + ", ".join(row["text"] for row in named)
            metadata.write(json.dumps({"file_name": f"{number:05}.jpg", "text": caption}) + "\n")


def _trainable(prior: Any) -> Any:
    """A fresh prior divides by a deviation of 0; those of the hub come with that of CLIP's embeddings."""
    torch.nn.init.ones_(prior.clip_std)
    return prior


def _set_sides(file: Path, side: int) -> None:
    """Let CLIP's pictures be cut to the side that its encoder takes."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings |= {"crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}}
    file.write_text(json.dumps(settings), encoding="utf-8")
