"""The model card of a result: its metadata, what it says of the run, and that its lines run."""

import re
from pathlib import Path
from typing import Any

import pytest
from finished_runs import SNAPSHOT, write_grid, write_run
from huggingface_hub import ModelCard
from test_generate import SIDE, TINY, pixels, python_blocks, run_with

from kcache.training.card import is_hub_name, write_card


def card(out: Path, repo_id: str | None = None) -> ModelCard:
    """The card that lies in OUT, read by the hub's library."""
    write_card(out, repo_id)
    return ModelCard((out / "README.md").read_text("utf-8"))


@pytest.mark.parametrize(("lora", "relation"), [(False, "finetune"), (True, "adapter")])
def test_the_metadata_is_what_the_hub_sorts_by(tmp_path: Path, lora: bool, relation: str) -> None:
    data = card(write_run(tmp_path / "out", lora=lora)).data.to_dict()
    assert data["base_model"] == "kandinsky-community/kandinsky-2-2-prior"
    assert data["base_model_relation"] == relation
    assert data["pipeline_tag"] == "text-to-image"
    assert data["library_name"] == "diffusers"
    assert ("lora" in data["tags"]) is lora
    assert "license" not in data


def test_the_card_says_from_what_and_how_it_was_trained(tmp_path: Path) -> None:
    text = card(write_run(tmp_path / "out", snr_gamma=5.0, learning_rate=3e-5, lr_scheduler="cosine")).text
    assert f"3,388 captioned pictures (snapshot `{SNAPSHOT[:12]}`)" in text
    for row in ("| updates | 200 of 64 samples each |", "| learning rate | 3e-05, cosine, 500 updates of warm-up |"):
        assert row in text
    assert "| Min-SNR gamma | 5 |" in text
    assert "| seed | 7 |" in text


def test_the_card_has_the_first_last_and_best_scores(tmp_path: Path) -> None:
    text = card(write_run(tmp_path / "out")).text
    assert "| loss on fixed draws | 0.5000 | 0.2000 | 0.2000 after update 200 |" in text
    assert re.search(r"\| validation loss \| 0\.\d{4} \| 0\.\d{4} \| 0\.\d{4} after update 150 \|", text)
    assert "R@1" in text
    assert "R@1" not in card(write_run(tmp_path / "other", "decoder")).text


def test_the_last_grid_is_the_picture_of_the_card(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out")
    text = card(out).text
    assert "![Validation pictures after update 200](validation.png)" in text
    assert (out / "validation.png").read_bytes() == (out / "validation" / "step-000200.png").read_bytes()
    assert '"a red fox", "a blue cup"' in text


def test_a_caption_cannot_break_the_card(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out")
    write_grid(out, 300, 1, ("<script>x</script>\n# Title\n---", "b|c"))
    text = card(out).text
    assert "<script>" not in text
    assert "\n# Title" not in text


def test_a_card_for_the_hub_names_the_repository_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", cache=str(tmp_path / "private" / "cache"))
    local, pushed = card(out).content, card(out, "ada/my-prior").content
    assert str(out) in local
    assert "# my-prior\n" in pushed
    assert 'from_pretrained("ada/my-prior", subfolder="prior")' in pushed
    for private in (str(tmp_path), "/home/ada", "private"):
        assert private not in pushed


def test_a_base_in_a_folder_is_no_base_model_of_the_hub(tmp_path: Path) -> None:
    import json

    out = write_run(tmp_path / "out")
    base = tmp_path / "bases" / "my-base"
    base.mkdir(parents=True)
    record = json.loads((out / "training.json").read_text())
    (out / "training.json").write_text(json.dumps(record | {"trained_from": str(base)}))
    pushed = card(out, "ada/my-prior")
    assert "base_model" not in pushed.data.to_dict()
    assert "trained from `my-base`" in pushed.text
    assert str(tmp_path) not in pushed.content


def test_names_on_the_hub_are_told_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_name("kandinsky-community/kandinsky-2-2-prior")
    for name in ("/a/b", "../b", "./b", "b", "a/b/c"):
        assert not is_hub_name(name), name
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert not is_hub_name("a/b")


# --- the lines that use a LoRA (those of whole components run in test_generate.py)


def lora_of(stage: str, out: Path) -> None:
    """A LoRA of kandinsky-tiny whose outputs are not those of its base."""
    import torch
    from diffusers import PriorTransformer, UNet2DConditionModel
    from peft import LoraConfig

    model_class, part = {"prior": (PriorTransformer, "prior"), "decoder": (UNet2DConditionModel, "unet")}[stage]
    model: Any = model_class.from_pretrained(str(TINY / stage), subfolder=part)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    with torch.no_grad():
        model.save_lora_adapter(str(out), safe_serialization=True)


@pytest.mark.parametrize(
    ("stage", "other"),
    [("prior", "kandinsky-community/kandinsky-2-2-decoder"), ("decoder", "kandinsky-community/kandinsky-2-2-prior")],
)
def test_the_lines_in_the_card_of_a_lora_make_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, other: str
) -> None:
    out = write_run(tmp_path / "out", stage, lora=True)
    lora_of(stage, out)
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks(card(out).text)
    own = f"kandinsky-community/kandinsky-2-2-{stage}"
    made = run_with(block, {own: TINY / stage, other: TINY / other.rpartition("-")[2]})
    assert pixels(tmp_path / "fox.png").shape == (SIDE, SIDE, 3)
    part = made["prior"].prior if stage == "prior" else made["decoder"].unet
    assert part.active_adapters() == ["trained"]
