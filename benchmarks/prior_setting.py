"""The prior's models with random weights, small or at full size, and the batches that all sides get."""

import argparse
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from architecture import CLIP_TEXT, CLIP_VISION, PRIOR

from kcache.devices import default_device
from kcache.training.objectives import Batch
from kcache.training.shared_text import places_of
from kcache.training.trimming import trimmed_length

TOKENS = 77
SMALL = {
    "text": {"hidden_size": 160, "intermediate_size": 640, "projection_dim": 160, "num_hidden_layers": 8}
    | {"num_attention_heads": 5},
    "vision": {"hidden_size": 208, "intermediate_size": 1024, "projection_dim": 160, "num_hidden_layers": 12}
    | {"num_attention_heads": 4},
    "prior": {"num_attention_heads": 4, "num_layers": 5, "embedding_dim": 160},
}
"""An eighth of each width and a quarter of the layers, so that the parts keep about their shares of the cost."""


@dataclass
class Trained:
    """A prior and its optimizer."""

    model: Any
    optimizer: Any

    @property
    def nbytes(self) -> int:
        """What they hold between two updates."""
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(one.nbytes for one in [*self.model.parameters(), *states] if isinstance(one, torch.Tensor))

    def update(self, loss: torch.Tensor) -> None:
        """One update of all weights."""
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Setting:
    """The models, on one device, and the batches that every side gets."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, torch.device(options.device or default_device())
        self.dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[options.dtype]
        self.generator = torch.Generator().manual_seed(0)
        change = SMALL if options.size == "small" else {"text": {}, "vision": {}, "prior": {}}
        self.shapes = {"text": CLIP_TEXT, "vision": CLIP_VISION, "prior": PRIOR}
        self.shapes = {name: shape | change[name] for name, shape in self.shapes.items()}
        self.scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")

    def trained(self) -> Trained:
        """A prior with random weights, in fp32 as both sides train it."""
        with self.device:
            model = diffusers.PriorTransformer(**self.shapes["prior"])
        torch.nn.init.ones_(model.clip_std)
        for name in ("clip_mean", "clip_std"):
            getattr(model, name).requires_grad_(False)
        return Trained(model.train(), None)

    def encoders(self) -> tuple[Any, Any]:
        """CLIP's two encoders, frozen, in the precision that the reference casts them to."""
        with self.device:
            text = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**self.shapes["text"]))
            config = transformers.CLIPVisionConfig(**self.shapes["vision"])
            vision = transformers.CLIPVisionModelWithProjection(config)
        return tuple(one.to(self.dtype).eval().requires_grad_(False) for one in (text, vision))  # type: ignore[return-value]

    def lengths(self, size: int) -> torch.Tensor:
        """Tokens of captions, all lengths within ``--tokens`` equally likely."""
        low, high = self.options.tokens
        return torch.randint(low, high + 1, (size,), generator=self.generator)

    def cached(self, size: int, draws: int, *, trim: bool, pack: bool = False) -> Batch:
        """A batch as it comes from a cache."""
        lengths, width = self.lengths(size), self.shapes["prior"]["embedding_dim"]
        length = trimmed_length(int(lengths.max()), TOKENS) if trim else TOKENS
        rows = (size,) if draws == 1 else (size, draws)
        batch = {
            "image_embeds": torch.randn(size, width, generator=self.generator),
            "text_embeds": torch.randn(size, width, generator=self.generator),
            "hidden_states": torch.randn(size, length, width, generator=self.generator),
            "lengths": lengths,
            "noise": torch.randn(*rows, width, generator=self.generator),
            "timesteps": torch.randint(0, 1000, rows, generator=self.generator),
        }
        if pack:
            batch["places"] = torch.from_numpy(places_of(lengths.numpy(), length, draws))
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def live(self, size: int) -> Batch:
        """A batch of captions as tokens and pictures as pixels, as the reference's loader gives it."""
        side, batch = self.shapes["vision"]["image_size"], self.cached(size, 1, trim=False)
        batch["tokens"] = torch.randint(0, 49000, (size, TOKENS), generator=self.generator).to(self.device)
        batch["pixels"] = torch.randn(size, 3, side, side, generator=self.generator).to(self.device, self.dtype)
        return batch

    def autocast(self) -> Any:
        """Mixed precision, as accelerate puts it around the forward of both."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def wait(self) -> None:
        """Until the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
