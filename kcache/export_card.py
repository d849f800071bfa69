"""The README of an export: what it is, and the lines of Python that load it."""

from pathlib import Path

from kcache.checkpoints import PRIOR
from kcache.results import Kind


def export_card(to: Path, kind: Kind, base: str, pipeline: str | None, *, scale: float | None, into: str | None) -> str:
    """The card of what lies in ``to``: a component, or the ``pipeline`` of that class.

    ``base``: the checkpoint that it was trained from. ``scale``: of a merged LoRA. ``into``: see `ExportConfig`.
    """
    what = f"A Kandinsky 2.2 {kind.stage}, trained from `{base}` with kcache"
    merged = f", its LoRA merged at scale {scale:g}" if scale is not None else ""
    added = f", added to the UNet of `{into}`" if into else ""
    if pipeline is None:
        lines = _load(kind.model, f'"{to}", subfolder="{kind.subfolder}"', "trained")
    else:
        lines = _load(pipeline, f'"{to}"', "pipeline")
    # By the prior in a decoder's front matter diffusers makes one pipeline of the two.
    is_decoder = pipeline == "KandinskyV22Pipeline"
    return f"""---
library_name: diffusers
base_model: {into or base}
{f"prior:{chr(10)}- {_prior_of(base)}{chr(10)}" if is_decoder else ""}tags: [kandinsky-2-2, text-to-image, kcache]
---

# A Kandinsky 2.2 {kind.stage}, exported by kcache

{what}{merged}{added}.

```python
{lines}{_together(to) if is_decoder else ""}
```
"""


def _load(name: str, arguments: str, variable: str) -> str:
    return f"from diffusers import {name}\n\n{variable} = {name}.from_pretrained({arguments})"


def _together(to: Path) -> str:
    return f"""

# With the prior that the front matter names, as one pipeline:
from diffusers import AutoPipelineForText2Image

pipeline = AutoPipelineForText2Image.from_pretrained("{to}")
pipeline("a red fox").images[0].save("fox.png")"""


def _prior_of(base: str) -> str:
    """The prior that a decoder's own card names, else the hub's."""
    from huggingface_hub import ModelCard

    card = Path(base) / "README.md"
    named = ModelCard.load(card).data.get("prior") if card.is_file() else None
    if not named:
        return PRIOR
    name = str(named[0])
    return str(Path(name).resolve()) if Path(name).is_dir() else name
