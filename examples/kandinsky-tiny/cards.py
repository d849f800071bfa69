"""The model cards of the two folders."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """What was measured on the 100 held-out emoji; None where nothing was trained."""

    clip_recall: float | None = None
    movq_psnr: float | None = None


def clip_sentence(scores: Scores) -> str:
    """How good the CLIP encoders are."""
    if scores.clip_recall is None:
        return "Both CLIP encoders are untrained too."
    return (
        "CLIP was trained on 3,288 Fluent emoji and their names; of 100 held-out names (skin tones not seen with\n"
        f"that base) it finds the right picture for {scores.clip_recall:.0%}."
    )


def movq_sentence(scores: Scores) -> str:
    """How good MoVQ is."""
    if scores.movq_psnr is None:
        return "MoVQ is untrained too."
    return (
        "MoVQ was trained on 3,288 Fluent emoji; the 100 held-out ones it reconstructs with a PSNR of "
        f"{scores.movq_psnr:.1f} dB."
    )


LICENCE = """## Licence

Weights: Apache-2.0, trained from scratch by `examples/kandinsky-tiny/make.py` of kcache.
Training pictures: Microsoft's [Fluent Emoji](https://github.com/microsoft/fluentui-emoji) (MIT), from npm
`@lobehub/fluent-emoji-3d` 1.1.0; names from npm `unicode-emoji-json`."""

PRIOR = """---
license: apache-2.0
tags:
- text-to-image
- kandinsky
- kcache
inference: false
---
# kandinsky-tiny-prior

A Kandinsky 2.2 prior pipeline in the layout of `kandinsky-community/kandinsky-2-2-prior`, small enough for a laptop
and for tests: CLIP text (3 layers, width 64, CLIP's real vocabulary), CLIP vision (64 px, 4 layers, width 128) and a
prior transformer (4 layers, width 128); embeddings have 64 numbers.
{clip}
The prior transformer is untrained: `kcache train prior` trains it.
Its `clip_mean` and `clip_std` are those of the training pictures' embeddings.

```python
from diffusers import KandinskyV22PriorPipeline

pipeline = KandinskyV22PriorPipeline.from_pretrained("{path}")
```

The tokenizer's `vocab.json` and `merges.txt` are OpenAI's CLIP vocabulary (MIT), as `open_clip_torch` distributes it.

{licence}
"""

DECODER = """---
license: apache-2.0
prior:
- {prior}
tags:
- text-to-image
- kandinsky
- kcache
inference: false
---
# kandinsky-tiny-decoder

A Kandinsky 2.2 decoder pipeline in the layout of `kandinsky-community/kandinsky-2-2-decoder`, small enough for a laptop
and for tests: MoVQ (64 px to 16x16x4 latents of about unit standard deviation) and a UNet of 1.75 M parameters that
predicts v.
{movq}
The UNet is untrained: `kcache train decoder` trains it.

## Text to image from local folders

diffusers reads the front matter's `prior:` to find the prior that belongs to this decoder. For a local folder it takes
that entry as a path **from the current directory**, not from this file, so this works in the root of the repository:

```python
from diffusers import AutoPipelineForText2Image

pipeline = AutoPipelineForText2Image.from_pretrained("{decoder}")
image = pipeline("red apple", height=64, width=64, num_inference_steps=25).images[0]
```

From anywhere else write an absolute path there, or put the two pipelines together by hand:

```python
from diffusers import KandinskyV22CombinedPipeline, KandinskyV22Pipeline, KandinskyV22PriorPipeline

prior = KandinskyV22PriorPipeline.from_pretrained(PRIOR_FOLDER)
decoder = KandinskyV22Pipeline.from_pretrained(DECODER_FOLDER)
parts = {{f"prior_{{name}}": part for name, part in prior.components.items()}}
pipeline = KandinskyV22CombinedPipeline(**decoder.components, **parts)
```

{licence}
"""


def prior_card(scores: Scores, path: str) -> str:
    """The prior's card; `path` is where its folder will lie."""
    return PRIOR.format(clip=clip_sentence(scores), licence=LICENCE, path=path)


def decoder_card(scores: Scores, path: str, prior: str) -> str:
    """The decoder's card; `path` and `prior` are where the two folders will lie."""
    return DECODER.format(movq=movq_sentence(scores), licence=LICENCE, decoder=path, prior=prior)
