"""The three frozen encoders: what each takes, what it stores, and the null features."""

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from kcache.checkpoints import Checkpoint
from kcache.devices import torch_dtype
from kcache.fingerprints import file_sha256
from kcache.shards import Column, Field, KcacheError
from kcache.shards.records import Record, digest

from .images import centre_square, clip_pixels

if TYPE_CHECKING:
    import torch
    from PIL import Image

Array = npt.NDArray[np.generic]
Features = dict[str, Array]
"""The arrays of one sample by field."""

STORE_DTYPES = {"fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Precision:
    """What the encoders compute in and on, and what is stored."""

    encode_dtype: str
    store_dtype: str
    device: "torch.device"


class Encoder(Protocol):
    """What fills one column. ``column`` is known without loading any weight."""

    column: Column

    def features(self, inputs: Sequence[Any], batch_size: int) -> Iterator[Features]:
        """The features of each input in order, computed ``batch_size`` at a time."""

    def null(self) -> Features | None:
        """The features of no condition, or None for a column that has none."""


class ImageEncoder(Encoder, Protocol):
    """An encoder that reads the picture and not the captions."""

    def prepare(self, image: "Image.Image", sha256: str) -> npt.NDArray[np.float32]:
        """The array that one picture is encoded from. Called from several threads."""


class TextColumn:
    """CLIP text: ``text_embeds`` and the hidden states of the real tokens, caption after caption.

    Computed as in the reference: padded to ``model_max_length``, truncated, without an attention mask. Pad tokens are
    then dropped, which loses nothing: the prior masks them and reads only its last token. A sample with C captions of
    T1 .. TC tokens has ``text_embeds`` (C, D), ``hidden_states`` (T1 + .. + TC, D) and ``lengths`` (C,).
    """

    def __init__(self, name: str, prior: Checkpoint, precision: Precision) -> None:
        """Read the configuration and hash the weights; load nothing."""
        self._component, self._precision = prior.component("text_encoder"), precision
        self._tokenizer_folder = prior.component("tokenizer").folder
        config, stored = self._component.config(), STORE_DTYPES[precision.store_dtype]
        self.column = Column(
            name=name,
            reads="captions",
            fields=(
                Field("text_embeds", stored, (None, config["projection_dim"])),
                Field("hidden_states", stored, (None, config["hidden_size"])),
                Field("lengths", "int32", (None,)),
            ),
            encoder={"class": "CLIPTextModelWithProjection", **self._component.identity()},
            preprocessing={
                "vocabulary": _vocabulary_digest(self._tokenizer_folder),
                "max_length": self.tokenizer.model_max_length,
            },
            encode_dtype=precision.encode_dtype,
            notes=_notes(prior),
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        from transformers import CLIPTokenizer

        try:
            return CLIPTokenizer.from_pretrained(str(self._tokenizer_folder))
        except Exception as error:  # A damaged vocabulary raises bare Exceptions from the Rust below.
            cause = str(error).split("\n")[0].rstrip(". ")
            raise KcacheError(
                f"{self._tokenizer_folder} does not load as CLIPTokenizer ({cause}); download the checkpoint again"
            ) from error

    @cached_property
    def _model(self) -> Any:
        from transformers import CLIPTextModelWithProjection

        return _load(self._component, CLIPTextModelWithProjection, self._precision)

    def token_counts(self, captions: Sequence[str]) -> list[int]:
        """How many tokens of each caption are stored: begin, text and end, cut at ``model_max_length``."""
        if not captions:
            return []
        ids = self.tokenizer(list(captions), truncation=True, max_length=self.tokenizer.model_max_length).input_ids
        return [len(row) for row in ids]

    def uncut_token_counts(self, captions: Sequence[str]) -> list[int]:
        """How many tokens each caption has before it is cut."""
        return [len(row) for row in self.tokenizer(list(captions), verbose=False).input_ids] if captions else []

    def features(self, inputs: Sequence[Sequence[str]], batch_size: int) -> Iterator[Features]:
        """The features of each sample from its captions, in order; batches run over sample borders."""
        flat = [caption for captions in inputs for caption in captions]
        encoded = (one for batch in _batches(flat, batch_size) for one in self._encode(batch))
        for captions in inputs:
            pairs = [next(encoded) for _ in captions]
            yield {
                "text_embeds": np.stack([embed for embed, _ in pairs]),
                "hidden_states": np.concatenate([hidden for _, hidden in pairs]),
                "lengths": np.asarray([len(hidden) for _, hidden in pairs], np.int32),
            }

    def null(self) -> Features:
        """The features of the empty caption."""
        return next(self.features([[""]], 1))

    def _encode(self, captions: Sequence[str]) -> Iterator[tuple[Array, Array]]:
        import torch

        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            list(captions), max_length=length, padding="max_length", truncation=True, return_tensors="pt"
        )
        with torch.inference_mode():
            output = self._model(tokens.input_ids.to(self._precision.device))
        embeds, hidden_states = _to_numpy(output.text_embeds), _to_numpy(output.last_hidden_state)
        for embed, hidden, count in zip(embeds, hidden_states, tokens.attention_mask.sum(1).tolist(), strict=True):
            yield embed, hidden[:count]


class ImageColumn:
    """CLIP vision: ``image_embeds`` (D,), stored raw; the prior's ``clip_mean`` and ``clip_std`` belong to training."""

    def __init__(self, name: str, prior: Checkpoint, precision: Precision, alpha: str) -> None:
        """Read the configuration and hash the weights; load nothing."""
        self._component, self._precision = prior.component("image_encoder"), precision
        self._config = self._component.config()
        processor = prior.component("image_processor")
        self._processor_folder = processor.folder
        self.column = Column(
            name=name,
            reads="image",
            fields=(Field("image_embeds", STORE_DTYPES[precision.store_dtype], (self._config["projection_dim"],)),),
            encoder={"class": "CLIPVisionModelWithProjection", **self._component.identity()},
            preprocessing={
                "alpha": alpha,
                "processor": _processor_settings(processor.config("preprocessor_config.json")),
            },
            encode_dtype=precision.encode_dtype,
            notes=_notes(prior),
        )

    @cached_property
    def prepare(self) -> Callable[["Image.Image", str], npt.NDArray[np.float32]]:
        """The checkpoint's image processor: always the PIL one, whose pixels differ a little from torchvision's."""
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        return clip_pixels(CLIPImageProcessorPil.from_pretrained(str(self._processor_folder)))

    @cached_property
    def _model(self) -> Any:
        from transformers import CLIPVisionModelWithProjection

        return _load(self._component, CLIPVisionModelWithProjection, self._precision)

    def features(self, inputs: Sequence[npt.NDArray[np.float32]], batch_size: int) -> Iterator[Features]:
        """The embedding of each picture."""
        for batch in _batches(inputs, batch_size):
            output = _run(lambda pixels: self._model(pixels).image_embeds, batch, self._precision)
            yield from ({"image_embeds": embed} for embed in output)

    def null(self) -> Features:
        """The embedding of a tensor of zeros, as KandinskyV22PriorPipeline.get_zero_embed has it."""
        size = self._config["image_size"]
        return next(self.features([np.zeros((3, size, size), np.float32)], 1))


class LatentsColumn:
    """MoVQ: ``latents`` (C, H, W) before quantisation, deterministic and without a scaling factor."""

    def __init__(self, name: str, decoder: Checkpoint, precision: Precision, alpha: str, resolution: int) -> None:
        """Read the configuration and hash the weights; load nothing. KcacheError for a resolution that does not fit."""
        self._component, self._precision, self._resolution = decoder.component("movq"), precision, resolution
        config = self._component.config()
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        if resolution < factor or resolution % factor:
            raise KcacheError(
                f"resolution {resolution} is not a multiple of {factor}, by which this MoVQ shrinks pictures"
            )
        shape = (config["latent_channels"], resolution // factor, resolution // factor)
        self.column = Column(
            name=name,
            reads="image",
            fields=(Field("latents", STORE_DTYPES[precision.store_dtype], shape),),
            encoder={"class": "VQModel", **self._component.identity()},
            preprocessing={
                "alpha": alpha,
                "crop": "centre square",
                "resize": "bicubic, reducing_gap 1",
                "resolution": resolution,
            },
            encode_dtype=precision.encode_dtype,
            notes=_notes(decoder),
        )

    def prepare(self, image: "Image.Image", sha256: str) -> npt.NDArray[np.float32]:
        """The centre square at this column's resolution, in [-1, 1]."""
        return centre_square(image, self._resolution)

    @cached_property
    def _model(self) -> Any:
        from diffusers import VQModel

        return _load(self._component, VQModel, self._precision)

    def features(self, inputs: Sequence[npt.NDArray[np.float32]], batch_size: int) -> Iterator[Features]:
        """The latents of each picture."""
        for batch in _batches(inputs, batch_size):
            output = _run(lambda pixels: self._model.encode(pixels).latents, batch, self._precision)
            yield from ({"latents": latents} for latents in output)

    def null(self) -> None:
        """None: the decoder is conditioned on the image embedding only."""
        return


def _run(encode: Callable[[Any], Any], batch: Sequence[npt.NDArray[np.float32]], precision: Precision) -> Array:
    import torch

    pixels = torch.from_numpy(np.stack(batch)).to(precision.device, torch_dtype(precision.encode_dtype))
    with torch.inference_mode():
        return _to_numpy(encode(pixels))


def _load(component: Any, model_class: Any, precision: Precision) -> Any:
    model = component.load(model_class, torch_dtype(precision.encode_dtype))
    return model.requires_grad_(False).to(precision.device)


def _to_numpy(tensor: "torch.Tensor") -> Array:
    return np.asarray(tensor.float().cpu().numpy())


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _vocabulary_digest(folder: Path) -> str:
    """sha256 over the files that fix how captions become tokens.

    The pad token is not among them: padding comes last, attention is causal, and its hidden states are dropped.
    """
    names = [name for name in ("vocab.json", "merges.txt") if (folder / name).is_file()] or ["tokenizer.json"]
    if not all((folder / name).is_file() for name in names):
        raise KcacheError(f"{folder} has neither vocab.json and merges.txt nor tokenizer.json; download it again")
    return digest({name: file_sha256(folder / name) for name in names})


def _processor_settings(config: Record) -> Record:
    """The settings of an image processor that change pixels, with the backend that kcache always takes."""
    keep = ("do_", "size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
    return {"backend": "pil", **{key: value for key, value in sorted(config.items()) if key.startswith(keep)}}


def _notes(checkpoint: Checkpoint) -> Record:
    packages = {name: version(name) for name in ("torch", "transformers", "diffusers", "pillow")}
    source = {"from": checkpoint.name_or_path, "revision": checkpoint.revision, "variant": checkpoint.variant}
    return {**source, "versions": {"python": platform.python_version(), **packages}}
