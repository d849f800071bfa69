"""Several processes train as one does, go on from what another number of them left, and say what they cannot do."""

import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launched import ACCELERATE, FSDP, ROOT, environ, result, together, updates
from support import encode_tiny, relative_distance
from tiny import PIXELS
from torch.distributed.fsdp.wrap import size_based_auto_wrap_policy

from kcache.shards import Cache, KcacheError
from kcache.training.config import DecoderConfig, PriorConfig
from kcache.training.engine import check_fsdp, require_agreement
from kcache.training.train import train

pytestmark = pytest.mark.slow

UPDATES, GLOBAL = 4, 4
PRECISION = 1e-5
Options = dict[str, Any]
Make = Callable[..., Options]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, pictures: Path, tiny_prior: Path, tiny_decoder: Path) -> Cache:
    """A second cache of the same columns, in the other container."""
    root = tmp_path_factory.mktemp("other") / "cache"
    return encode_tiny(root, pictures, tiny_prior, tiny_decoder, format="h5")


@pytest.fixture(scope="module")
def make(encoded: Callable[..., Cache], other: Cache, tiny_prior: Path, tiny_decoder: Path) -> Make:
    """``make(stage, out, **changes)``: the options of four updates of four samples, as a job."""

    def options(stage: str, out: Path, **changes: Any) -> Options:
        checkpoints = {"prior": tiny_prior, "decoder": tiny_decoder}
        fixed = {
            "stage": stage,
            "cache": str(encoded().root),
            "output_dir": str(out),
            f"pretrained_{stage}_model_name_or_path": str(checkpoints[stage]),
            "seed": 3,
            "max_train_steps": UPDATES,
            "logging_steps": 1,
            "lr_scheduler": "constant_with_warmup",
            "lr_warmup_steps": 2,
            "probe_samples": 4,
            **({"resolution": PIXELS} if stage == "decoder" else {}),
        }
        return {**fixed, **changes}

    return options


def everything(other: Cache, **more: Any) -> Options:
    """All that may read, draw, average or measure something at once."""
    return {
        "use_ema": True,
        "conditioning_dropout": 0.3,
        "mix": ((str(other.root), 0.25),),
        "loss_weight": (0.5,),
        "validation_split": 0.3,
        "validation_steps": 2,
        "snr_gamma": 5.0,
        **more,
    }


SGD = {"optimizer": "sgd", "learning_rate": 0.1}
ADAMW = {"optimizer": "adamw", "learning_rate": 2e-3}
DRAWS = {"draws_per_sample": 3, "pack_captions": True, "group_by_length": True, "gradient_checkpointing": True}
LORA = {"lora": True, "rank": 2}
"""Without dropout of its own, which is drawn by process."""


def cases(other: Cache) -> dict[str, tuple[str, Options]]:
    """Stage and options of each training that is compared with itself in one process."""
    return {
        "prior-sgd": ("prior", SGD),
        "decoder-sgd": ("decoder", SGD),
        "prior-adamw": ("prior", ADAMW),
        "decoder-adamw": ("decoder", ADAMW),
        "prior-everything": ("prior", everything(other, **SGD)),
        "prior-lora": ("prior", everything(other, **SGD, **LORA)),
        "prior-draws": ("prior", everything(other, **SGD, **DRAWS)),
        "decoder-lora": ("decoder", everything(other, **SGD, **LORA)),
        "decoder-everything": ("decoder", everything(other, **SGD, gradient_checkpointing=True)),
        "prior-accumulated": ("prior", {**SGD, "gradient_checkpointing": True}),
        "prior-bf16": ("prior", {**SGD, "mixed_precision": "bf16"}),
    }


CASES = [
    "prior-sgd",
    "decoder-sgd",
    "prior-adamw",
    "decoder-adamw",
    "prior-everything",
    "prior-lora",
    "prior-draws",
    "decoder-lora",
    "decoder-everything",
    "prior-accumulated",
    "prior-bf16",
]
ALIKE_WHEN_SHARDED = {"decoder-sgd", "prior-adamw", "decoder-lora", "prior-draws"}
"""What goes no way of its own when the weights are sharded, where an update takes ten times as long on a CPU."""

ENGINES = {
    "ddp": CASES,
    "fsdp": [name for name in CASES if name not in ALIKE_WHEN_SHARDED],
    "fsdp, the rest": sorted(ALIKE_WHEN_SHARDED),
}
"""The cases of each way to train in two processes; the last one is left to a torture."""


def paired(*without: str) -> pytest.MarkDecorator:
    """Parameters: each engine with each of its cases whose name has none of these words in it."""
    found = [
        pytest.param(engine, name, marks=[pytest.mark.torture] * (engine == "fsdp, the rest"))
        for engine, names in ENGINES.items()
        for name in names
        if not any(word in name for word in without)
    ]
    return pytest.mark.parametrize(("engine", "name"), found, indirect=["engine"])


def split(name: str) -> Options:
    """How two processes divide an update of four samples."""
    if name == "prior-accumulated":
        return {"train_batch_size": 1, "gradient_accumulation_steps": 2}
    return {"train_batch_size": 2}


@pytest.fixture(scope="module")
def alone(make: Make, other: Cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OUT of each case trained by one process, by its name."""
    folder = tmp_path_factory.mktemp("alone")
    for name, (stage, options) in cases(other).items():
        train_alone(make(stage, folder / name, train_batch_size=GLOBAL, **options))
    return folder


def train_alone(job: Options) -> int:
    """One training in this process; returns the update it came to."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # the precision may be another
    options = dict(job)
    config: Any = {"prior": PriorConfig, "decoder": DecoderConfig}[options.pop("stage")]
    step = train(config(**options)).step
    AcceleratorState._reset_state(reset_partial_state=True)
    return step


ENVIRONMENTS = {"ddp": {}, "fsdp": FSDP, "fsdp, the rest": FSDP}
RESUMED = ["prior-everything", "decoder-adamw", "prior-lora"]
"""What is begun by two processes, gone on with by one, and finished by two."""


@pytest.fixture(params=["ddp", "fsdp"])
def engine(request: pytest.FixtureRequest) -> str:
    """With "ddp" two processes have all weights each, with "fsdp" they are sharded among them."""
    return str(request.param)


@pytest.fixture(scope="module")
def pairs(make: Make, other: Cache, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``pairs(engine)``: the OUT of each of its cases trained by two processes, and of those that are only begun."""

    @cache
    def trained(engine: str) -> Path:
        folder, options = tmp_path_factory.mktemp("pair"), cases(other)
        jobs = {name: make(stage, folder / name, **split(name), **o) for name, (stage, o) in options.items()}
        jobs = {name: jobs[name] for name in ENGINES[engine]}
        for name in jobs.keys() & RESUMED:
            jobs[f"begun-{name}"] = {**jobs[name], "output_dir": str(folder / f"begun-{name}"), "max_train_steps": 1}
        done = together(folder, jobs, **ENVIRONMENTS[engine])
        assert done == {name: {"step": 1 if name.startswith("begun") else UPDATES} for name in jobs}
        return folder

    return trained


@pytest.fixture
def pair(engine: str, pairs: Callable[[str], Path]) -> Path:
    return pairs(engine)


@paired()
def test_two_processes_measure_at_every_update_what_one_does(alone: Path, pair: Path, name: str) -> None:
    ours, theirs = updates(pair / name), updates(alone / name)
    assert [line.keys() for line in ours] == [line.keys() for line in theirs]
    precision = 1e-2 if name == "prior-bf16" else PRECISION
    for one, expected in zip(ours, theirs, strict=True):
        assert one == pytest.approx(expected, rel=precision, abs=precision if "validation_cosine" in one else 0)


@paired("adamw", "bf16")
def test_two_processes_end_at_the_weights_of_one(alone: Path, pair: Path, name: str) -> None:
    ours, theirs = result(pair / name), result(alone / name)
    assert relative_distance((ours[n] for n in theirs), theirs.values()) < PRECISION
    assert ours.keys() == theirs.keys()


def test_a_checkpoint_is_the_same_file_by_file_whoever_wrote_it(alone: Path, pair: Path) -> None:
    for name in ("prior-everything", "decoder-adamw", "prior-lora"):
        ours, theirs = (folder / name / f"checkpoint-{UPDATES}" for folder in (pair, alone))
        assert {p.relative_to(ours) for p in ours.rglob("*")} == {p.relative_to(theirs) for p in theirs.rglob("*")}
        tensors, expected = (torch.load(p / "optimizer.pt", weights_only=True) for p in (ours, theirs))
        assert shapes(tensors) == shapes(expected)


def shapes(state: Any) -> Any:
    """A nested state with the shape and type in place of each tensor."""
    if isinstance(state, dict):
        return {name: shapes(value) for name, value in state.items()}
    if isinstance(state, list):
        return [shapes(value) for value in state]
    return (type(state), tuple(state.shape), state.dtype) if isinstance(state, torch.Tensor) else state


@pytest.fixture(scope="module")
def resumptions(
    pairs: Callable[[str], Path], make: Make, other: Cache, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """``resumptions(engine)``: runs that were begun by two processes, gone on with by one and finished by two again."""

    @cache
    def finished(engine: str) -> Path:
        folder, jobs = tmp_path_factory.mktemp("resumed"), {}
        for name in RESUMED:
            stage, options = cases(other)[name]
            more = {**options, "train_batch_size": 2, "resume_from_checkpoint": "latest"}
            out = shutil.copytree(pairs(engine) / f"begun-{name}", folder / name)
            assert train_alone(make(stage, out, **{**more, "max_train_steps": 3})) == 3
            jobs[name] = make(stage, out, **more)
        assert together(folder, jobs, **ENVIRONMENTS[engine]) == {name: {"step": UPDATES} for name in RESUMED}
        return folder

    return finished


@pytest.fixture
def resumed(engine: str, resumptions: Callable[[str], Path]) -> Path:
    return resumptions(engine)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_exactly_with_one_process_after_two_and_two_after_one(
    alone: Path, resumed: Path, name: str
) -> None:
    ours, theirs = ([line["loss"] for line in updates(out / name) if "loss" in line] for out in (resumed, alone))
    assert ours == pytest.approx(theirs, rel=PRECISION)
    weights, expected = result(resumed / name), result(alone / name)
    names = [n for n in expected if not n.endswith(("to_k.bias", "add_k_proj.bias"))]  # adamw makes steps of rounding
    assert relative_distance((weights[n] for n in names), (expected[n] for n in names)) < 10 * PRECISION


def test_accumulation_is_adjusted_and_said_or_refused_where_it_does_not_come_out(
    pair: Path, make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = shutil.copytree(pair / "begun-decoder-adamw", tmp_path / "begun")
    job = make("decoder", begun, **ADAMW, train_batch_size=2, resume_from_checkpoint="latest", max_train_steps=2)
    with pytest.raises(KcacheError, match=r"made with global_batch 4 and this run has 3; choose --train-batch-size"):
        train_alone({**job, "train_batch_size": 3})
    with caplog.at_level("INFO", logger="kcache"):
        train_alone(job)
    said = "--gradient-accumulation-steps is 2 instead of 1, so that an update has 4 samples as before"
    assert said in caplog.messages


# --- started by accelerate, from a file


def config_in_the_docs(kind: str) -> str:
    """The configuration of docs/clusters.md for this ``distributed_type``, for two processes and any free port."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "clusters.md").read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if f"distributed_type: {kind}\n" in block]
    return f"{block.replace('num_processes: 8', 'num_processes: 2')}main_process_port: 0\n"


def launch(tmp_path: Path, config: str, program: list[str], job: Options) -> subprocess.CompletedProcess[str]:
    """``accelerate launch --config_file FILE ... train STAGE CACHE ...`` with the options of a job."""
    file = tmp_path / "config.yaml"
    file.write_text(config)
    options = dict(job)
    stage, cache = options.pop("stage"), options.pop("cache")
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    line = [*ACCELERATE, "--config_file", str(file), *program, "train", stage, cache, *words]
    return subprocess.run(line, cwd=ROOT, env=environ(), capture_output=True, text=True, timeout=300)


def test_accelerate_launch_with_a_config_file_trains_in_two_processes(alone: Path, make: Make, tmp_path: Path) -> None:
    job = make("decoder", tmp_path / "out", **SGD, train_batch_size=2)
    config = config_in_the_docs("MULTI_GPU").replace("mixed_precision: bf16", "mixed_precision: 'no'\nuse_cpu: true")
    ran = launch(tmp_path, config, ["-m", "kcache"], job)
    assert ran.returncode == 0, ran.stderr
    assert "in 2 processes, each with all weights" in ran.stderr
    ours, theirs = result(tmp_path / "out"), result(alone / "decoder-sgd")
    assert relative_distance((ours[name] for name in theirs), theirs.values()) < PRECISION


def test_accelerate_launch_with_fsdp_in_the_config_file_shards_the_weights(
    alone: Path, make: Make, tmp_path: Path
) -> None:
    job = make("prior", tmp_path / "out", **SGD, train_batch_size=2)
    ran = launch(tmp_path, config_in_the_docs("FSDP"), ["tests/fsdp_on_cpu.py"], job)
    assert ran.returncode == 0, ran.stderr
    assert "in 2 processes, the weights sharded among them" in ran.stderr
    ours, theirs = result(tmp_path / "out"), result(alone / "prior-sgd")
    assert relative_distance((ours[name] for name in theirs), theirs.values()) < PRECISION


# --- what is refused


@pytest.mark.parametrize(
    ("options", "accelerated", "said"),
    [
        ({"optimizer": "prodigy"}, {}, "--optimizer prodigy does not work with weights sharded by FSDP; give one of"),
        ({"use_8bit_adam": True}, {}, "--optimizer adamw8bit does not work with weights sharded by FSDP"),
        ({"validation_prompts": ("a fox",)}, {}, "--validation-prompts draws in one process, which has no whole model"),
        ({}, {"mixed_precision": "fp16"}, r"fp16 under FSDP is not supported; give --mixed-precision bf16 or no"),
        ({}, {"is_fsdp2": False}, r"under the second FSDP only; put fsdp_version: 2 under fsdp_config"),
        ({}, {"distributed_type": "MULTI_CPU"}, r"accelerate has no FSDP for 2 process\(es\) on cpu; choose another"),
        ({}, {"policy": size_based_auto_wrap_policy}, r"by size; put fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP"),
    ],
)
def test_what_sharded_weights_cannot_do_is_refused_with_a_sentence(
    options: Options, accelerated: dict[str, Any], said: str
) -> None:
    plugin = SimpleNamespace(auto_wrap_policy=accelerated.pop("policy", None))
    found = {"distributed_type": "FSDP", "is_fsdp2": True, "mixed_precision": "no", **accelerated}
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), num_processes=2, device=torch.device("cpu"), **found
    )
    with pytest.raises(KcacheError, match=said):
        check_fsdp(accelerator, PriorConfig(cache="cache", output_dir="out", **options))


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("ACCELERATE_USE_FSDP", r"accelerate has no FSDP for 1 process\(es\) on cpu; choose another configuration"),
        ("ACCELERATE_USE_DEEPSPEED", r"kcache does not train under DeepSpeed; choose FSDP \(fsdp_version: 2\)"),
        ("ACCELERATE_USE_MEGATRON_LM", r"kcache does not train under Megatron-LM; choose FSDP"),
    ],
)
def test_an_engine_that_would_be_ignored_or_fail_is_refused(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, said: str
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(KcacheError, match=said):
        train_alone(make("prior", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_processes_that_see_other_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [{"the checkpoint to go on from": "checkpoint-5"}, {"the checkpoint to go on from": "None"}]
    monkeypatch.setattr("accelerate.utils.gather_object", lambda mine: seen)
    two = SimpleNamespace(num_processes=2)
    with pytest.raises(KcacheError, match=r"process 1 has the checkpoint to go on from None and process 0 has check"):
        require_agreement(two, seen[0])
    require_agreement(SimpleNamespace(num_processes=1), seen[1])


def test_fp16_without_a_gpu_is_refused_and_bf16_is_not_fp32(alone: Path, make: Make, tmp_path: Path) -> None:
    with pytest.raises(KcacheError, match=r"fp16 needs a GPU and this is cpu, .*; give --mixed-precision bf16 or no"):
        train_alone(make("prior", tmp_path / "out", mixed_precision="fp16"))
    for stage in ("prior", "decoder"):
        train_alone(make(stage, tmp_path / stage, **SGD, train_batch_size=GLOBAL, mixed_precision="bf16"))
        ours, theirs = (
            [line["loss"] for line in updates(out) if "loss" in line]
            for out in (tmp_path / stage, alone / f"{stage}-sgd")
        )
        assert ours == pytest.approx(theirs, rel=0.05)
        assert ours != theirs
