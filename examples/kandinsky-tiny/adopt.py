"""Put a prior and a UNet that `kcache train` made into kandinsky-tiny, in fp16, and say so in the cards."""

import argparse
import json
from pathlib import Path

import torch
from diffusers import PriorTransformer, UNet2DConditionModel

OPENING = {"prior": "The prior transformer ", "decoder": "The UNet "}
"""How the line of a card begins that says what trained this component."""
TRAINED = "was trained from noise by `kcache train {stage}` on the same 3,288 emoji, for {steps}."


def adopt(trained: Path, checkpoint: Path, stage: str, steps: str) -> None:
    """Write the trained component of one stage over the one in `checkpoint`, a pipeline's folder."""
    model_class, subfolder = {"prior": (PriorTransformer, "prior"), "decoder": (UNet2DConditionModel, "unet")}[stage]
    model = model_class.from_pretrained(trained / subfolder, use_safetensors=True, dtype=torch.float16)
    model.save_pretrained(checkpoint / subfolder, safe_serialization=True)
    config = json.loads((checkpoint / subfolder / "config.json").read_text())
    config.pop("_name_or_path", None)  # a path of the machine that trained it
    (checkpoint / subfolder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for path in (checkpoint / subfolder).glob("*.safetensors"):
        path.chmod(0o644)
    card = checkpoint / "README.md"
    lines = card.read_text().splitlines(keepends=True)
    (said,) = (number for number, line in enumerate(lines) if line.startswith(OPENING[stage]))
    lines[said] = OPENING[stage] + TRAINED.format(stage=stage, steps=steps) + "\n"
    card.write_text("".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prior", type=Path, required=True, help="OUT of kcache train prior")
    parser.add_argument("--decoder", type=Path, required=True, help="OUT of kcache train decoder")
    parser.add_argument("--out", type=Path, required=True, help="has prior/ and decoder/")
    parser.add_argument("--prior-steps", required=True, help="as the card should say it, such as '2,500 updates of 64'")
    parser.add_argument("--decoder-steps", required=True)
    options = parser.parse_args()
    adopt(options.prior, options.out / "prior", "prior", options.prior_steps)
    adopt(options.decoder, options.out / "decoder", "decoder", options.decoder_steps)


if __name__ == "__main__":
    main()
