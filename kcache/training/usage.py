"""The Python lines that make a picture with what was trained, by stage and by kind of result."""

from kcache.checkpoints import DECODER, PRIOR


def usage(
    output: str, stage: str, trained_from: str, side: int, *, lora: bool = False, component_from: str | None = None
) -> str:
    """The lines for stock diffusers. ``output`` and ``trained_from`` are folders or names on the hub alike.

    ``side`` is that of the picture in pixels. A result is a whole component, or a LoRA of it: one that was trained on
    the result of another run belongs to that component, in ``component_from``, within the pipeline ``trained_from``.
    """
    lines = _USAGE[stage, lora]
    if component_from is not None:
        model, name = _COMPONENTS[stage]
        load = f'{name}={model}.from_pretrained("{component_from}", subfolder="{name}")'
        lines = lines.replace('from_pretrained("{trained_from}")', f'from_pretrained("{{trained_from}}", {load})')
        lines = lines.replace("KandinskyV22PriorPipeline\n", f"KandinskyV22PriorPipeline, {model}\n", 1)
    lines = lines.format(output=output, trained_from=trained_from, prior=PRIOR, decoder=DECODER)
    return lines.replace("SIDE", str(side))


_COMPONENTS = {"prior": ("PriorTransformer", "prior"), "decoder": ("UNet2DConditionModel", "unet")}


_PIPELINES = """
image_embeds, negative_image_embeds = prior("a red fox").to_tuple()
images = decoder(image_embeds=image_embeds, negative_image_embeds=negative_image_embeds, height=SIDE, width=SIDE).images
images[0].save("fox.png")"""

_PRIOR = (
    """from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline, PriorTransformer

trained = PriorTransformer.from_pretrained("{output}", subfolder="prior")
prior = KandinskyV22PriorPipeline.from_pretrained("{trained_from}", prior=trained)
decoder = KandinskyV22Pipeline.from_pretrained("{decoder}")  # or the folder of your decoder
"""
    + _PIPELINES
    + """

# The same in one pipeline, for a decoder on the hub (its card names the prior that it belongs to):
#   from diffusers import AutoPipelineForText2Image
#   AutoPipelineForText2Image.from_pretrained("{decoder}", prior_prior=trained)("a red fox").images[0]"""
)

_DECODER = (
    """from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline, UNet2DConditionModel

trained = UNet2DConditionModel.from_pretrained("{output}", subfolder="unet")
prior = KandinskyV22PriorPipeline.from_pretrained("{prior}")  # or the folder of your prior
decoder = KandinskyV22Pipeline.from_pretrained("{trained_from}", unet=trained)
"""
    + _PIPELINES
    + """

# The same in one pipeline, for a decoder on the hub:
#   from diffusers import AutoPipelineForText2Image
#   AutoPipelineForText2Image.from_pretrained("{trained_from}", unet=trained)("a red fox").images[0]"""
)

_PRIOR_LORA = (
    """from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline

prior = KandinskyV22PriorPipeline.from_pretrained("{trained_from}")
prior.prior.load_lora_adapter("{output}", prefix=None, adapter_name="trained", use_safetensors=True)
prior.prior.set_adapters("trained", 1.0)  # its strength
decoder = KandinskyV22Pipeline.from_pretrained("{decoder}")  # or the folder of your decoder
"""
    + _PIPELINES
)

_DECODER_LORA = (
    """from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline

prior = KandinskyV22PriorPipeline.from_pretrained("{prior}")  # or the folder of your prior
decoder = KandinskyV22Pipeline.from_pretrained("{trained_from}")
decoder.unet.load_lora_adapter("{output}", prefix=None, adapter_name="trained", use_safetensors=True)
decoder.unet.set_adapters("trained", 1.0)  # its strength
"""
    + _PIPELINES
)

_USAGE = {
    ("prior", False): _PRIOR,
    ("decoder", False): _DECODER,
    ("prior", True): _PRIOR_LORA,
    ("decoder", True): _DECODER_LORA,
}
