"""What was trained works in every stock pipeline of Kandinsky 2.2: whole or as a LoRA, loaded, merged or exported."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from commands import done, kcache, refused, tree
from diffusers import (
    AutoPipelineForText2Image,
    DiffusionPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorEmb2EmbPipeline,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    UNet2DConditionModel,
)
from lora_support import make_lora_out
from PIL import Image
from pipelines import SIDE, make_pipelines, picture, run_decoder, run_prior

from kcache.lora_file import LORA_FILE

CLOSE: dict[str, float] = {"rtol": 1e-3, "atol": 1e-4}
MODELS = {"prior": ("prior", PriorTransformer), "decoder": ("unet", UNet2DConditionModel)}
RUN: dict[str, Callable[[Any], torch.Tensor]] = {"prior": run_prior, "decoder": run_decoder}
SAME_UNET = ("KandinskyV22Pipeline", "KandinskyV22Img2ImgPipeline")
OTHER_UNET = {
    "KandinskyV22InpaintPipeline": "inpaint",
    "KandinskyV22ControlnetPipeline": "controlnet",
    "KandinskyV22ControlnetImg2ImgPipeline": "controlnet",
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny_prior: Path, tiny_decoder: Path, pictures: Path) -> Path:
    """Pipelines of every kind, and from them ``my-prior``, ``my-decoder``, and a LoRA and a DoRA of each."""
    from commands import encode_with

    folder = make_pipelines(tmp_path_factory.mktemp("results"), tiny_prior, tiny_decoder)
    done(encode_with(folder / "prior", folder / "decoder")(pictures, folder / "cache"))
    for stage, more in (("prior", []), ("decoder", [f"--resolution={SIDE}"])):
        name = f"--pretrained-{stage}-model-name-or-path={folder / stage}"
        options = ["--max-train-steps=2", "--learning-rate=0.01", "--seed=0", "--probe-samples=0", *more]
        done(kcache("train", stage, folder / "cache", name, f"--output-dir={folder / f'my-{stage}'}", *options))
        make_lora_out(folder / f"{stage}-lora", stage, folder / stage)
        make_lora_out(folder / f"{stage}-dora", stage, folder / stage, use_dora=True, lora_alpha=2.0)
    return folder


def export(*words: object) -> Any:
    """`kcache export`."""
    return kcache("export", *words)


def quick(results: Path) -> list[object]:
    """Options of `kcache generate` for two steps on the CPU, with the priors' beginnings."""
    return ["--prior", results / "prior", "--num-inference-steps=2", "--prior-num-inference-steps=2", "--device=cpu"]


def generate(results: Path, png: Path, *words: object) -> bytes:
    """The picture that `kcache generate` makes of one prompt and seed."""
    names = ["--decoder", results / "decoder", *quick(results), f"--resolution={SIDE}", "--no-metadata", "-o", png]
    done(kcache("generate", "a red fox", *names, *words))
    return png.read_bytes()


def differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two results are further apart than rounding explains."""
    return not torch.allclose(one, other, **CLOSE)


@cache
def around(folder: Path) -> dict[str, Any]:
    """The parts of a pipeline that are not trained, loaded once: reading a tokenizer takes longer than using it."""
    parts: dict[str, Any] = DiffusionPipeline.from_pretrained(folder).components
    return {name: part for name, part in parts.items() if name not in ("prior", "unet", "scheduler")}


def plain(results: Path, stage: str, **parts: Any) -> Any:
    """The pipeline that training began from, or with these parts."""
    return DiffusionPipeline.from_pretrained(results / stage, **around(results / stage), **parts)


def with_whole(results: Path, stage: str) -> Any:
    """The pipeline with what a run without --lora trained, as stock diffusers loads it."""
    part, model = MODELS[stage]
    return plain(results, stage, **{part: model.from_pretrained(results / f"my-{stage}", subfolder=part)})


def with_lora(pipeline: Any, stage: str, out: Path, scale: float = 1.0) -> Any:
    """A pipeline with a LoRA in it, as stock diffusers loads it."""
    component = getattr(pipeline, MODELS[stage][0])
    component.load_lora_adapter(str(out), prefix=None, use_safetensors=True, adapter_name="mine")
    component.set_adapters("mine", scale)
    return pipeline


# --- stock pipelines


@pytest.mark.parametrize("name", SAME_UNET)
def test_a_trained_decoder_works_in_pipelines_with_the_decoders_unet(results: Path, name: str) -> None:
    pipeline_class = getattr(diffusers, name)
    before = run_decoder(pipeline_class.from_pretrained(results / "decoder"))
    unet = UNet2DConditionModel.from_pretrained(results / "my-decoder", subfolder="unet")
    whole = run_decoder(pipeline_class.from_pretrained(results / "decoder", unet=unet))
    for kind in ("lora", "dora"):
        lora = pipeline_class.from_pretrained(results / "decoder")
        assert differ(run_decoder(with_lora(lora, "decoder", results / f"decoder-{kind}")), before)
        lora.unet.disable_lora()
        torch.testing.assert_close(run_decoder(lora), before, **CLOSE)
    assert differ(whole, before)


@pytest.mark.parametrize("name", OTHER_UNET)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_lora_of_the_decoder_works_in_pipelines_with_a_relatives_unet(results: Path, name: str, kind: str) -> None:
    pipeline = getattr(diffusers, name).from_pretrained(results / OTHER_UNET[name])
    before = run_decoder(pipeline)
    assert differ(run_decoder(with_lora(pipeline, "decoder", results / f"decoder-{kind}")), before)
    pipeline.unet.unload_lora()
    torch.testing.assert_close(run_decoder(pipeline), before, **CLOSE)


def test_a_trained_prior_works_in_interpolation_and_from_a_picture(results: Path) -> None:
    def interpolated(pipeline: Any) -> torch.Tensor:
        pipeline.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed(0)
        made: torch.Tensor = pipeline.interpolate(
            ["a red fox", picture()], [0.7, 0.3], num_inference_steps=2, generator=seed
        ).image_embeds
        return made

    def from_picture(pipeline: Any) -> torch.Tensor:
        parts = KandinskyV22PriorEmb2EmbPipeline(**pipeline.components)
        parts.set_progress_bar_config(disable=True)
        seed = torch.Generator().manual_seed(0)
        made: torch.Tensor = parts("a fox", picture(), num_inference_steps=4, strength=1.0, generator=seed).image_embeds
        return made

    for run in (interpolated, from_picture, run_prior):
        before = run(plain(results, "prior"))
        assert before.shape == (1, 16)
        assert differ(run(with_whole(results, "prior")), before)
        for kind in ("lora", "dora"):
            assert differ(run(with_lora(plain(results, "prior"), "prior", results / f"prior-{kind}")), before)


def test_results_of_both_stages_work_in_one_pipeline(results: Path) -> None:
    def run(pipeline: Any) -> torch.Tensor:
        pipeline.set_progress_bar_config(disable=True)
        sizes = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "prior_num_inference_steps": 2}
        made: torch.Tensor = pipeline(
            "a red fox", **sizes, generator=torch.Generator().manual_seed(0), output_type="pt"
        ).images
        return made

    before = run(AutoPipelineForText2Image.from_pretrained(results / "decoder"))
    whole = AutoPipelineForText2Image.from_pretrained(
        results / "decoder",
        unet=UNet2DConditionModel.from_pretrained(results / "my-decoder", subfolder="unet"),
        prior_prior=PriorTransformer.from_pretrained(results / "my-prior", subfolder="prior"),
    )
    assert differ(run(whole), before)
    for component, out in (("prior_prior", "prior-lora"), ("unet", "decoder-lora")):
        pipeline = AutoPipelineForText2Image.from_pretrained(results / "decoder")
        getattr(pipeline, component).load_lora_adapter(str(results / out), prefix=None, use_safetensors=True)
        assert differ(run(pipeline), before)


# --- kcache export --fuse


@pytest.mark.parametrize("scale", [1.0, 0.4])
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_a_fused_lora_is_what_diffusers_makes_of_the_lora_at_that_scale(
    results: Path, tmp_path: Path, stage: str, kind: str, scale: float
) -> None:
    part, model = MODELS[stage]
    out, to = results / f"{stage}-{kind}", tmp_path / "to"
    said = done(export(out, to, "--fuse", *([f"--lora-scale={scale}"] if scale != 1 else []))).stdout
    assert said.startswith(f"Wrote {to} (")
    assert f'Next: kcache generate "a prompt" --{stage} {to} --' in said
    assert {path.name for path in to.iterdir()} == {part, "training.json", "README.md"}
    assert {path.name for path in (to / part).iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    fused = model.from_pretrained(to, subfolder=part)
    assert {name for name, _ in fused.named_parameters()} == {
        name for name, _ in getattr(plain(results, stage), part).named_parameters()
    }
    made = RUN[stage](plain(results, stage, **{part: fused}))
    torch.testing.assert_close(made, RUN[stage](with_lora(plain(results, stage), stage, out, scale)), **CLOSE)
    record = json.loads((to / "training.json").read_bytes())
    assert record["exported"] == {"from": str(out), "lora_scale": scale, "into": None}


def test_a_fused_lora_may_be_trained_on_and_generated_with(results: Path, tmp_path: Path) -> None:
    done(export(results / "prior-lora", tmp_path / "fused", "--fuse"))
    name = f"--pretrained-prior-model-name-or-path={tmp_path / 'fused'}"
    options = ["--max-train-steps=1", "--learning-rate=0", "--seed=0", "--probe-samples=0"]
    done(kcache("train", "prior", results / "cache", name, "--output-dir", tmp_path / "again", *options))
    weights = "prior/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (tmp_path / "fused" / weights).read_bytes()
    record = json.loads((tmp_path / "again" / "training.json").read_bytes())
    assert record["trained_from"] == str(results / "prior")


def test_a_lora_alone_is_never_taken_for_the_model_that_it_was_trained_from(results: Path, tmp_path: Path) -> None:
    for stage, more in (("prior", []), ("decoder", [f"--resolution={SIDE}"])):
        out = results / f"{stage}-lora"
        name = f"--pretrained-{stage}-model-name-or-path={out}"
        said = refused(kcache("train", stage, results / "cache", name, "--output-dir", tmp_path / "again", *more))
        assert said == (
            f"{out} holds a LoRA of the {stage} and not the whole; merge it with 'kcache export {out} --fuse' and name"
            f" {out / 'fused'}"
        )
    assert not (tmp_path / "again").exists()


# --- kcache export --pipeline


@pytest.mark.parametrize("kind", ["my", "lora"])
@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_an_exported_pipeline_loads_whole_and_makes_what_the_result_makes(
    results: Path, tmp_path: Path, stage: str, kind: str
) -> None:
    out = results / (f"my-{stage}" if kind == "my" else f"{stage}-lora")
    done(export(out, tmp_path / "to", "--pipeline"))
    wanted = with_whole(results, stage) if kind == "my" else with_lora(plain(results, stage), stage, out)
    pipeline_class = {"prior": KandinskyV22PriorPipeline, "decoder": KandinskyV22Pipeline}[stage]
    exported = pipeline_class.from_pretrained(tmp_path / "to", use_safetensors=True)
    torch.testing.assert_close(RUN[stage](exported), RUN[stage](wanted), **CLOSE)
    assert {path.name for path in (tmp_path / "to").iterdir()} == {
        "README.md",
        "training.json",
        *(path.name for path in (results / stage).iterdir()),
    }
    assert not [path for path in tree(tmp_path / "to") if path.endswith((".bin", ".pt", ".pkl", ".ckpt"))]


def test_an_exported_decoder_and_its_prior_load_as_one_pipeline(results: Path, tmp_path: Path) -> None:
    done(export(results / "decoder-lora", tmp_path / "to", "--pipeline"))
    pipeline = AutoPipelineForText2Image.from_pretrained(tmp_path / "to")
    assert type(pipeline).__name__ == "KandinskyV22CombinedPipeline"
    mine = AutoPipelineForText2Image.from_pretrained(
        tmp_path / "to", prior_prior=PriorTransformer.from_pretrained(results / "my-prior", subfolder="prior")
    )
    assert differ(mine.prior_prior.proj_in.weight, pipeline.prior_prior.proj_in.weight)


def test_the_lines_in_the_readme_of_an_export_load_it(results: Path, tmp_path: Path) -> None:
    from test_generate import python_blocks

    for number, words in enumerate((["--fuse"], ["--pipeline"], ["--pipeline", "--into", results / "inpaint"])):
        done(export(results / "decoder-lora", tmp_path / str(number), *words))
        (block,) = python_blocks((tmp_path / str(number) / "README.md").read_text("utf-8"))
        made: dict[str, Any] = {}
        exec(compile("\n".join(line for line in block.splitlines() if "a red fox" not in line), "card", "exec"), made)
        assert set(made) & {"pipeline", "trained"}


@pytest.mark.parametrize(
    ("dtype", "wanted", "words"),
    [
        ("bf16", torch.bfloat16, ["--fuse"]),
        ("fp16", torch.float16, ["--pipeline"]),
        ("fp16", torch.float16, ["--pipeline", "--into", "controlnet"]),
    ],
)
def test_an_export_in_half_precision_is_the_rounded_one(
    results: Path, tmp_path: Path, dtype: str, wanted: torch.dtype, words: list[str]
) -> None:
    from safetensors.torch import load_file

    words = [str(results / word) if word == "controlnet" else word for word in words]
    for name in ("fp32", dtype):
        done(export(results / "decoder-lora", tmp_path / name, *words, "--dtype", name))
    weights = "unet/diffusion_pytorch_model.safetensors"
    full, half = load_file(tmp_path / "fp32" / weights), load_file(tmp_path / dtype / weights)
    assert full.keys() == half.keys()
    assert all(torch.equal(half[name], tensor.to(wanted)) for name, tensor in full.items())


# --- kcache export --pipeline --into


@pytest.mark.parametrize("name", OTHER_UNET)
@pytest.mark.parametrize("kind", ["my", "lora"])
def test_a_trained_decoder_is_added_to_a_relatives_unet(results: Path, tmp_path: Path, name: str, kind: str) -> None:
    out = results / ("my-decoder" if kind == "my" else "decoder-lora")
    relative = results / OTHER_UNET[name]
    said = done(export(out, tmp_path / "to", "--pipeline", "--into", relative)).stdout
    assert "Next:" not in said  # kcache generate has no hint and no mask to give
    pipeline_class = getattr(diffusers, name)
    exported, before = (pipeline_class.from_pretrained(folder) for folder in (tmp_path / "to", relative))
    assert differ(run_decoder(exported), run_decoder(before))
    if kind == "lora":
        by_diffusers = with_lora(before, "decoder", out)
        torch.testing.assert_close(run_decoder(exported), run_decoder(by_diffusers), **CLOSE)


@pytest.mark.parametrize("relative", ["inpaint", "controlnet"])
def test_what_is_added_is_what_was_learned_and_the_relatives_own_weights_stay(
    results: Path, tmp_path: Path, relative: str
) -> None:
    done(export(results / "my-decoder", tmp_path / "to", "--pipeline", "--into", results / relative))
    folders = (results / "decoder", results / "my-decoder", results / relative, tmp_path / "to")
    old, new, theirs, exported = (
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet").state_dict() for folder in folders
    )
    own = theirs.keys() - old.keys()
    assert all(name.startswith("add_embedding.input_hint_block.") for name in own)
    assert bool(own) == (relative == "controlnet")
    assert all(torch.equal(exported[name], theirs[name]) for name in own)
    for name, weight in new.items():
        added = exported[name] - theirs[name]
        learned = weight - old[name]
        if name == "conv_in.weight":  # latents are the first inputs of every kind
            assert torch.equal(added[:, 4:], torch.zeros_like(added[:, 4:]))
            added = added[:, :4]
        torch.testing.assert_close(added, learned, rtol=1e-4, atol=1e-6)


# --- what is refused


def test_senseless_exports_are_refused_before_anything_is_written(
    results: Path, tmp_path: Path, tiny_prior: Path
) -> None:
    to, lora, whole = tmp_path / "to", results / "decoder-lora", results / "my-decoder"
    for words, code, wanted in (
        ([lora, to], 2, "give either --fuse, to merge a LoRA, or --pipeline, to write all that KandinskyV22Pipeline"),
        ([lora, to, "--fuse", "--pipeline"], 2, "give either --fuse, to merge a LoRA, or --pipeline"),
        ([whole, to, "--fuse"], 2, f"{whole} holds the whole 'unet' and no LoRA, so there is nothing to merge; it is"),
        (
            [whole, to, "--pipeline", "--lora-scale=2"],
            2,
            f"{whole} is no LoRA, so it has no scale; leave the scale out",
        ),
        ([lora, to, "--fuse", "--into", "x"], 2, "--into goes with --pipeline and a decoder; a prior serves every"),
        ([results / "my-prior", to, "--pipeline", "--into", "x"], 2, "--into goes with --pipeline and a decoder"),
        ([tiny_prior, to, "--pipeline"], 1, f"{tiny_prior} is not the --output-dir of a run that is done (it has no t"),
        ([tmp_path / "no", to, "--fuse"], 1, f"{tmp_path / 'no'} is not the --output-dir of a run that is done (it ha"),
        ([lora, to, "--pipeline", "--into", tiny_prior], 1, f"{tiny_prior} does not load as a pipeline with a UNet ("),
        ([lora, to, "--pipeline", "--into", results / "prior"], 1, "prior does not load as a pipeline with a UNet ("),
        ([lora, results, "--fuse"], 1, f"{results} exists; remove it, or name another folder after {results.parent}"),
        ([lora, lora / LORA_FILE / "to", "--fuse"], 1, f"lies below {lora / LORA_FILE}, which is a file; name another"),
    ):
        assert wanted in refused(export(*words), code=code)
        assert list(tmp_path.iterdir()) == []


def test_without_a_name_the_export_lies_in_out_and_is_not_written_over(results: Path, tmp_path: Path) -> None:
    out = make_lora_out(tmp_path / "out", "decoder", results / "decoder")
    for words, name in ((["--fuse"], "fused"), (["--pipeline"], "pipeline")):
        assert f"Wrote {out / name} (" in done(export(out, *words)).stdout
        before = tree(out)
        assert refused(export(out, *words)).startswith(f"{out / name} exists; remove it, or name another folder after")
        assert tree(out) == before


def test_a_pipeline_of_another_architecture_takes_nothing(results: Path, tmp_path: Path) -> None:
    other = Path(__file__).parent.parent / "kcache" / "data" / "kandinsky-tiny" / "decoder"
    said = refused(export(results / "my-decoder", tmp_path / "to", "--pipeline", "--into", other))
    assert said.startswith(f"the UNet of {other} has another shape of conv_in.weight, which was trained; name a pipel")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_fails_leaves_nothing(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", full)
    said = refused(export(results / "decoder-lora", tmp_path / "to", "--fuse"))
    assert said.startswith(f"the disk of {tmp_path} is full and to was not written; free some space and run the same")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["export", "--fuse"], ["generate"]])
def test_a_lora_that_is_damaged_or_of_another_model_is_named(results: Path, tmp_path: Path, command: list[str]) -> None:
    def run(out: Path) -> str:
        if command[0] == "export":
            return refused(export(out, tmp_path / "to", "--fuse"))
        return refused(kcache("generate", "a fox", "--decoder", out, "-o", tmp_path / "a.png", *quick(results)))

    out = make_lora_out(tmp_path / "cut", "decoder", results / "decoder")
    (out / LORA_FILE).write_bytes((out / LORA_FILE).read_bytes()[:-5])
    assert run(out).startswith(f"{out / LORA_FILE} does not load (cut, damaged, or not what kcache wrote: ")
    out = make_lora_out(tmp_path / "foreign", "decoder", results / "decoder")
    record = json.loads((out / "training.json").read_bytes())
    other = Path(__file__).parent.parent / "kcache" / "data" / "kandinsky-tiny" / "decoder"
    (out / "training.json").write_text(json.dumps(record | {"trained_from": str(other)}))
    assert "UNet2DConditionModel takes" in run(out)
    gone = record | {"trained_from": str(tmp_path / "gone")}
    (out / "training.json").write_text(json.dumps(gone))
    assert run(out).startswith(f"checkpoint {tmp_path / 'gone'} does not exist; name a folder")
    assert not (tmp_path / "to").exists()
    assert not (tmp_path / "a.png").exists()


# --- kcache generate


@pytest.mark.parametrize("stage", ["prior", "decoder"])
def test_generate_takes_a_lora_as_it_takes_what_it_is_merged_into(results: Path, tmp_path: Path, stage: str) -> None:
    out, png = results / f"{stage}-lora", tmp_path / "a.png"
    before = generate(results, png)
    made = generate(results, png, f"--{stage}", out)
    assert made != before
    assert generate(results, png, f"--{stage}", out, f"--{stage}-lora-scale=0") == before
    half = generate(results, png, f"--{stage}", out, f"--{stage}-lora-scale=0.5")
    assert half not in (made, before)
    done(export(out, tmp_path / "to", "--fuse", "--lora-scale=0.5"))
    assert generate(results, png, f"--{stage}", tmp_path / "to") == half


def test_an_exported_decoder_knows_its_resolution_and_not_what_it_was_trained_from(
    results: Path, tmp_path: Path
) -> None:
    done(export(results / "decoder-lora", tmp_path / "to", "--pipeline"))
    done(kcache("generate", "a fox", *quick(results), "--decoder", tmp_path / "to", "-o", tmp_path / "a.png"))
    said = refused(export(tmp_path / "to", "--pipeline", "--into", results / "inpaint"), code=2)
    assert said.startswith(f"{tmp_path / 'to'} is an exported pipeline, which does not say what it was trained from")
    with Image.open(tmp_path / "a.png") as made:
        assert made.size == (SIDE, SIDE)


def test_a_lora_of_a_trained_model_is_put_on_that_and_not_on_what_came_before(results: Path, tmp_path: Path) -> None:
    out = make_lora_out(tmp_path / "second", "decoder", results / "my-decoder")
    assert json.loads((out / "training.json").read_bytes())["trained_from"] == str(results / "my-decoder")
    stock = with_lora(with_whole(results, "decoder"), "decoder", out)
    done(export(out, "--pipeline"))
    exported = KandinskyV22Pipeline.from_pretrained(out / "pipeline")
    torch.testing.assert_close(run_decoder(exported), run_decoder(stock), **CLOSE)
    done(export(out, "--fuse"))
    assert json.loads((out / "fused" / "training.json").read_bytes())["trained_from"] == str(results / "decoder")
    done(export(out, tmp_path / "inpaint", "--pipeline", "--into", results / "inpaint"))
    unet = UNet2DConditionModel.from_pretrained(tmp_path / "inpaint", subfolder="unet")
    theirs = UNet2DConditionModel.from_pretrained(results / "inpaint", subfolder="unet")
    whole = UNet2DConditionModel.from_pretrained(results / "my-decoder", subfolder="unet")
    base = UNet2DConditionModel.from_pretrained(results / "decoder", subfolder="unet")
    learned = whole.conv_out.weight - base.conv_out.weight  # by the first run: the LoRA has no part in this layer
    torch.testing.assert_close(unet.conv_out.weight - theirs.conv_out.weight, learned, rtol=1e-4, atol=1e-6)


def test_a_scale_without_a_lora_is_refused(results: Path, tmp_path: Path) -> None:
    for stage, name in (("prior", results / "my-prior"), ("decoder", results / "decoder")):
        words = [*quick(results), f"--{stage}", name, f"--{stage}-lora-scale=0.5", "-o", tmp_path / "a.png"]
        said = refused(kcache("generate", "a fox", *words), code=2)
        assert said == f"{name} is no LoRA, so it has no scale; leave the scale out, or name the OUT of a LoRA"


def test_a_lora_of_the_other_stage_or_without_a_record_is_refused(results: Path, tmp_path: Path) -> None:
    words = [*quick(results), "-o", tmp_path / "a.png"]
    said = refused(kcache("generate", "a fox", *words, "--decoder", results / "prior-lora"))
    assert said == f"{results / 'prior-lora'} is a prior; give it as --prior, and a decoder here"
    out = make_lora_out(tmp_path / "alone", "decoder", results / "decoder")
    (out / "training.json").unlink()
    said = refused(kcache("generate", "a fox", *words, "--decoder", out))
    assert said.startswith(f"{out} holds a LoRA and no training.json, which says what it was trained from; name the")
