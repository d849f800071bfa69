"""`kcache plan` reckons what training takes, and every command that it prints can be run."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from commands import Encode, done, kcache, refused

from kcache.planning import plan as planning
from kcache.planning.devices import DEVICES, find_speed
from kcache.planning.passes import count_pass
from kcache.shards import UsageError, summarize
from kcache.shards.cache import Cache

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def checkpoints(tiny_prior: Path, tiny_decoder: Path) -> list[str]:
    return [
        f"--pretrained-prior-model-name-or-path={tiny_prior}",
        f"--pretrained-decoder-model-name-or-path={tiny_decoder}",
    ]


@pytest.fixture(autouse=True)
def _counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass takes seconds to count, and the plans here are for few different ones."""

    def counted(config: Any, subject: Any, autocast: bool) -> Any:
        key = (type(config), config.lora, config.weights_dtype, config.base_dtype, repr(subject), autocast)
        if key not in PASSES:
            PASSES[key] = count_pass(config, subject, autocast)
        return PASSES[key]

    monkeypatch.setattr(planning, "count_pass", counted)


PASSES: dict[Any, Any] = {}


def planned(*args: object, code: int = 0) -> Any:
    return json.loads(done(kcache("plan", *args, "--json"), code).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prior, --low-memory", "decoder 768, --lora --low-memory"])
def test_memory_is_reckoned_to_within_fifteen_percent(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of models with Kandinsky's layers at a fraction of their widths; the benchmark has full size."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import memory_model

    (case,) = (case for case in memory_model.CASES if case.name == name)
    with memory_model.on_fake_tensors():
        reckoned, peak = memory_model.compare(case, "tiny")
    assert reckoned.peak == pytest.approx(peak, rel=memory_model.LIMIT)


def test_a_cache_is_planned_for_and_the_commands_run(whole: Path, tmp_path: Path, checkpoints: list[str]) -> None:
    said = done(kcache("plan", whole, "--vram", "8GB", *checkpoints)).stdout
    assert f"{whole}: 10 samples; holds " in said
    lines = [line.strip() for line in said.splitlines() if line.startswith("  kcache train ")]
    assert len(lines) == 4, said
    for number, line in enumerate(lines):
        words = shlex.split(line)[1:]
        words[words.index("--output-dir") + 1] = str(tmp_path / str(number))
        fixed = ["--max-train-steps=1", "--probe-samples=0", "--mixed-precision=no"]
        done(kcache(*words, *fixed))


def test_a_dataset_is_planned_for_before_it_is_encoded(
    pictures: Path, encode: Encode, tmp_path: Path, checkpoints: list[str]
) -> None:
    report = planned(pictures, "--vram=8GB", "--resolution=32", *checkpoints)
    reckoned = {column["name"]: column["bytes"] for column in report["source"]["columns"]}
    assert report["source"]["samples"] == 10
    assert report["source"]["tokens"] == 77
    done(encode(pictures, tmp_path / "cache", "--shard-size=256"))
    columns = {column.name: column for column in summarize(Cache(tmp_path / "cache")).columns}
    for name in ("text", "image"):
        assert reckoned[name] == pytest.approx(columns[name].bytes, rel=0.15), name
    assert [way["command"].split()[2] for way in report["ways"]] == ["prior", "prior", "decoder", "decoder"]


def test_less_memory_asks_for_more_options(whole: Path, checkpoints: list[str]) -> None:
    fixed = [whole, *checkpoints, "--train-batch-size=16"]
    seen = []
    vram = 8 * 10**9
    for _ in range(4):
        way = planned(*fixed, f"--vram={vram / 1e9:.9f}GB")["ways"][0]
        assert way["fits"]
        seen.append(way["options"])
        vram = planning.CONTEXT + round(way["memory"]["peak"] * 0.98 / planning.SHARE)
    assert seen == [rung.words for rung in planning._FULL[:4]]


def test_what_fits_nowhere_is_said_and_the_exit_code_tells(whole: Path, checkpoints: list[str]) -> None:
    result = done(kcache("plan", whole, "--vram=0.50001GB", *checkpoints), code=1)
    assert result.stdout.count("does not fit; with ") == 4
    said = refused(kcache("plan", whole, "--vram=0.4GB", *checkpoints), code=2)
    assert "less than CUDA itself takes" in said


def test_times_are_said_for_a_device_that_is_known(whole: Path, checkpoints: list[str]) -> None:
    said = done(kcache("plan", whole, "--device=rtx-3090", *checkpoints)).stdout
    assert "Times are for GeForce RTX 3090: 40% of 71.2 TFLOP/s" in said
    assert said.count("an update in ") == 4
    slow, fast = (planned(whole, f"--device={name}", *checkpoints)["ways"][0] for name in ("rtx-3070", "h100"))
    assert slow["update_seconds"] / slow["batch"] > fast["update_seconds"] / fast["batch"]
    with pytest.raises(UsageError, match=r"'gtx-1' is none of rtx-3070, .*, and here for this machine"):
        find_speed("gtx-1")


def test_this_machine_is_measured() -> None:
    speed = find_speed("here")
    assert 1e8 < speed.operations < max(device.operations for device in DEVICES.values())
    assert speed.bandwidth > 1e8


def test_a_source_that_cannot_be_planned_for_is_named(whole: Path, dataset: Path, checkpoints: list[str]) -> None:
    assert "has hidden_states of 16 and" in refused(kcache("plan", whole, "--vram=8GB"))
    assert "has no latents of 48 px (it has: 32)" in refused(
        kcache("plan", whole, "--vram=8GB", "--resolution=48", *checkpoints)
    )
    assert "has no sample that could be encoded" in refused(kcache("plan", dataset, "--vram=8GB", *checkpoints))
    assert "is no size such as 8GB" in kcache("plan", whole, "--vram=big").stderr


def test_a_gpu_is_asked_for_where_there_is_none(
    whole: Path, checkpoints: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "say what to plan for, such as --vram 8GB" in refused(kcache("plan", whole, *checkpoints), code=2)


def test_the_help_names_every_device() -> None:
    said = " ".join(kcache("plan", "--help").stdout.split())
    assert f"{', '.join(DEVICES)}, or here" in said
