"""The result of a run: the trained component in the hub's layout, and a README with the lines that use it."""

from pathlib import Path
from typing import Any

from kcache.checkpoints import DECODER, PRIOR


def readme(output_dir: Path, stage: str, trained_from: str, options: dict[str, Any]) -> str:
    """The model card: what this is, and the code that loads it in stock diffusers."""
    steps = options["max_train_steps"]
    trained = f"{steps:,} updates" if steps else f"{options['num_train_epochs']} epochs"
    return f"""---
library_name: diffusers
base_model: {trained_from}
tags: [kandinsky-2-2, text-to-image, kcache]
---

# A Kandinsky 2.2 {stage}, trained with kcache

Trained from `{trained_from}` for {trained}; all options are in `training.json`.

```python
{usage(str(output_dir.resolve()), stage, trained_from, options.get("resolution") or 512)}
```
"""


def usage(output_dir: str, stage: str, trained_from: str, side: int) -> str:
    """The Python lines that make a picture with what was trained, for a checkpoint in a folder or on the hub."""
    lines = _USAGE[stage].format(output_dir=output_dir, trained_from=trained_from, prior=PRIOR, decoder=DECODER)
    return lines.replace("SIDE", str(side))


_PIPELINES = """
image_embeds, negative_image_embeds = prior("a red fox").to_tuple()
images = decoder(image_embeds=image_embeds, negative_image_embeds=negative_image_embeds, height=SIDE, width=SIDE).images
images[0].save("fox.png")"""

_USAGE = {
    "prior": """from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline, PriorTransformer

trained = PriorTransformer.from_pretrained("{output_dir}", subfolder="prior")
prior = KandinskyV22PriorPipeline.from_pretrained("{trained_from}", prior=trained)
decoder = KandinskyV22Pipeline.from_pretrained("{decoder}")  # or the folder of your decoder
"""
    + _PIPELINES
    + """

# The same in one pipeline, for a decoder on the hub (its card names the prior that it belongs to):
#   from diffusers import AutoPipelineForText2Image
#   AutoPipelineForText2Image.from_pretrained("{decoder}", prior_prior=trained)("a red fox").images[0]""",
    "decoder": """from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline, UNet2DConditionModel

trained = UNet2DConditionModel.from_pretrained("{output_dir}", subfolder="unet")
prior = KandinskyV22PriorPipeline.from_pretrained("{prior}")  # or the folder of your prior
decoder = KandinskyV22Pipeline.from_pretrained("{trained_from}", unet=trained)
"""
    + _PIPELINES
    + """

# The same in one pipeline, for a decoder on the hub:
#   from diffusers import AutoPipelineForText2Image
#   AutoPipelineForText2Image.from_pretrained("{trained_from}", unet=trained)("a red fox").images[0]""",
}
