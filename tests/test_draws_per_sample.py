"""Several noise draws that share a caption's text are learned from as that many separate passes are."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, PriorTransformer
from lora_support import WIDTH, batch_of, tiny_model
from safetensors.torch import load_file
from support import metrics, relative_distance
from torch import Tensor

from kcache.shards import Cache, KcacheError, Snapshot
from kcache.training.config import PriorConfig
from kcache.training.draws import NOISE, TIMESTEP, Draws
from kcache.training.ema import Ema
from kcache.training.loop import Objective
from kcache.training.memory import apply_memory_options
from kcache.training.objectives import Batch
from kcache.training.samples import Samples
from kcache.training.shared_text import attend_for_all_heads, places_of, shared_mask, what_keeps_apart
from kcache.training.sources import MicroBatch
from kcache.training.stages import make_stage
from kcache.training.train import train
from kcache.training.trimming import run_prior
from kcache.training.weights import make_weights

SEED, DRAWS = 5, 4
WEIGHTS = "prior/diffusion_pytorch_model.safetensors"
SCHEDULER = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
Make = Callable[..., PriorConfig]


@pytest.fixture
def make(encoded: Callable[..., Cache], tiny_prior: Path, tmp_path: Path) -> Make:
    """``make(out, **changes)``: six updates of two times two samples, with all that is drawn or averaged."""

    def config(out: str = "out", **changes: Any) -> PriorConfig:
        options: dict[str, Any] = {
            "seed": SEED,
            "train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_train_steps": 6,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "checkpointing_steps": 2,
            "probe_samples": 4,
            "conditioning_dropout": 0.3,
            "snr_gamma": 5.0,
            "use_ema": True,
            "draws_per_sample": 3,
            **changes,
        }
        paths = {"cache": str(encoded().root), "output_dir": str(tmp_path / out)}
        paths["pretrained_prior_model_name_or_path"] = str(tiny_prior)
        return PriorConfig(**{**paths, **options})

    return config


# --- what is learned


def batch_with_draws(length: int, weighted: bool = False) -> Batch:
    """Three captions with four draws each; the longest has 13 tokens, kept at ``length`` positions."""
    generator = torch.Generator().manual_seed(1)
    batch = batch_of("prior", length)
    batch["noise"] = torch.randn(3, DRAWS, WIDTH, generator=generator)
    batch["timesteps"] = torch.randint(0, 1000, (3, DRAWS), generator=generator)
    return {**batch, "weights": torch.tensor([1.0, 0.5, 2.0])} if weighted else batch


def without_padding(batch: Batch, draws: int = DRAWS) -> Batch:
    """The batch with the places of the tokens that are no padding."""
    places = places_of(batch["lengths"].numpy(), batch["hidden_states"].shape[1], draws)
    return {**batch, "places": torch.from_numpy(places)}


def one_draw(batch: Batch, number: int) -> Batch:
    """The batch that has but one of the draws, padding and all."""
    kept = {name: tensor for name, tensor in batch.items() if name != "places"}
    return {**kept, **{name: batch[name][:, number] for name in ("noise", "timesteps")}}


def objective_of(model: Any, snr_gamma: float | None = None) -> Objective:
    from kcache.training.objectives import prior_loss

    attend_for_all_heads(model)
    return Objective(SimpleNamespace(model=model, loss=prior_loss, scheduler=SCHEDULER), snr_gamma).train()  # type: ignore[arg-type]


def learned(model: Any, loss: Tensor) -> tuple[float, list[Tensor]]:
    """A loss and the gradients of all that is trained."""
    model.zero_grad()
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.requires_grad]


def assert_same_as_separate_passes(
    objective: Objective,
    batch: Batch,
    tolerance: float = 1e-5,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    with within():
        together = objective(batch)
        apart = torch.stack([objective(one_draw(batch, number)) for number in range(DRAWS)]).mean()
    (loss, gradients), (expected, theirs) = (learned(objective.model, one) for one in (together, apart))
    assert loss == pytest.approx(expected, rel=tolerance)
    assert relative_distance(gradients, theirs) < tolerance


@pytest.fixture
def model(tiny_prior: Path) -> Any:
    return tiny_model("prior", tiny_prior, tiny_prior)


@pytest.mark.parametrize("length", [77, 16])
@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_draws_are_learned_from_as_by_separate_passes(
    model: Any, length: int, gamma: float | None, weighted: bool, pack: bool
) -> None:
    batch = batch_with_draws(length, weighted)
    assert_same_as_separate_passes(objective_of(model, gamma), without_padding(batch) if pack else batch)


@pytest.mark.parametrize("length", [77, 16])
def test_one_draw_without_padding_is_learned_from_as_with_it(model: Any, length: int) -> None:
    objective, batch = objective_of(model, 5.0), one_draw(batch_with_draws(length), 0)
    expected = learned(model, objective(batch))
    rows: list[int] = []
    model.transformer_blocks[0].ff.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[:-1].numel()))
    loss, gradients = learned(model, objective(without_padding(batch, draws=1)))
    assert rows == [int(batch["lengths"].sum()) + 3 * 4]
    assert loss == pytest.approx(expected[0], rel=1e-5)
    assert relative_distance(gradients, expected[1]) < 1e-5


@pytest.mark.parametrize("length", [77, 16])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("pack", [False, True])
def test_it_goes_with_loras_and_checkpointed_blocks(model: Any, length: int, lora: bool, pack: bool) -> None:
    config = PriorConfig(cache="", output_dir="", lora=lora, rank=3, gradient_checkpointing=True)
    make_weights(config, "prior").prepare(model, SEED)
    if lora:
        with torch.no_grad():  # a new LoRA adds nothing
            for name, parameter in model.named_parameters():
                parameter.add_(0.1 if "lora_B" in name else 0.0)
    apply_memory_options(model, config)
    batch = batch_with_draws(length)
    assert_same_as_separate_passes(objective_of(model, 5.0), without_padding(batch) if pack else batch)


@pytest.mark.parametrize("pack", [False, True])
def test_it_goes_with_mixed_precision(model: Any, pack: bool) -> None:
    batch = without_padding(batch_with_draws(16)) if pack else batch_with_draws(16)
    assert_same_as_separate_passes(objective_of(model), batch, 2e-2, lambda: torch.autocast("cpu", torch.bfloat16))


def test_weights_and_their_average_move_as_after_separate_passes(tiny_prior: Path) -> None:
    together, apart = (tiny_model("prior", tiny_prior, tiny_prior) for _ in range(2))
    batch, averages = batch_with_draws(16), []
    for model, parts in ((together, [batch]), (apart, [one_draw(batch, number) for number in range(DRAWS)])):
        parameters, objective = [p for p in model.parameters() if p.requires_grad], objective_of(model, 5.0)
        ema, optimizer = Ema(parameters, 0.9), torch.optim.SGD(parameters, 0.1)
        for _ in range(3):
            for part in parts:
                (objective(part) / len(parts)).backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.step()
        averages.append(ema.state_dict()["averages"])
    assert relative_distance(together.parameters(), apart.parameters()) < 1e-5
    assert relative_distance(*averages) < 1e-5


def test_priors_with_norms_before_their_blocks_are_the_same(model: Any) -> None:
    torch.manual_seed(0)
    other = PriorTransformer(
        **{**model.config, "norm_in_type": "layer", "embedding_proj_norm_type": "layer", "encoder_hid_proj_type": None},
    )
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    other.clip_mean.requires_grad_(False)
    other.clip_std.requires_grad_(False)
    assert_same_as_separate_passes(objective_of(other), batch_with_draws(16))


def test_a_draw_sees_the_text_and_itself_and_no_padding() -> None:
    mask = shared_mask(torch.tensor([2, 3]), length=3, draws=2, dtype=torch.float32)
    assert mask.shape == (2, 1, 10, 10)
    assert mask.stride()[2] % 8 == 0
    seen = ["".join("x" if value == 0 else "." for value in row) for row in mask[0, 0].tolist()]
    assert set(mask.unique().tolist()) == {0.0, -10000.0}
    assert seen == [
        "x.........",
        "xx........",
        "xx........",  # padding, which nobody reads
        "xx.x......",
        "xx.xx.....",
        "xx.xxx....",
        "xx.xxxx...",
        "xx.x...x..",
        "xx.x...xx.",
        "xx.x...xxx",
    ]


def test_the_prior_by_itself_computes_the_same_to_the_bit_afterwards(model: Any) -> None:
    batch = one_draw(batch_with_draws(16), 0)
    names = ("noise", "timesteps", "text_embeds", "hidden_states", "lengths")
    before = run_prior(model, *(batch[name] for name in names))
    attend_for_all_heads(model)
    assert torch.equal(run_prior(model, *(batch[name] for name in names)), before)


# --- the draws


def read(config: PriorConfig, positions: list[int], *, training: bool = True) -> Batch:
    cache = Cache(config.cache)
    stage = make_stage(config, cache)
    source = stage.make_source(Samples([Snapshot(cache, stage.columns)]), SEED, training=training)
    batch = MicroBatch(2, range(7, 7 + len(positions)), positions)
    return source.fill(source.allocate(len(positions), pin=False), batch)


def test_the_first_draw_and_all_else_of_a_sample_is_what_one_draw_has(make: Make) -> None:
    positions = list(range(10))
    several, one = (read(make(draws_per_sample=draws), positions) for draws in (3, 1))
    for name, tensor in one.items():
        assert torch.equal(several[name][:, 0] if name in ("noise", "timesteps") else several[name], tensor), name


def test_every_draw_has_a_key_of_its_own(make: Make) -> None:
    batch, noise = read(make(), [4, 1]), torch.empty(WIDTH)
    assert (batch["noise"].shape, batch["timesteps"].shape) == ((2, 3, WIDTH), (2, 3))
    for i in range(2):
        for number in range(3):
            Draws(SEED).normal(2, 7 + i, NOISE, noise.numpy(), number)
            assert torch.equal(batch["noise"][i, number], noise)
            assert batch["timesteps"][i, number] == Draws(SEED).integer(2, 7 + i, TIMESTEP, 1000, number)
    assert len(torch.unique(batch["noise"])) == batch["noise"].numel()


def test_more_draws_begin_with_the_same(make: Make) -> None:
    some, more = (read(make(draws_per_sample=draws), [0, 3]) for draws in (2, 5))
    for name in ("noise", "timesteps"):
        assert torch.equal(more[name][:, :2], some[name])


def test_losses_that_are_compared_take_one_draw(make: Make) -> None:
    assert read(make(), [0, 3], training=False)["timesteps"].shape == (2,)


def test_the_draws_are_the_ones_they_have_always_been() -> None:
    """If this fails, a run that is resumed sees other noise."""
    noise = torch.empty(3)
    Draws(42).normal(3, 1, NOISE, noise.numpy(), 2)
    assert noise.tolist() == pytest.approx([0.4579746, 0.7898675, -0.7575468], rel=1e-5)
    assert [Draws(42).integer(3, 0, TIMESTEP, 1000, number) for number in range(4)] == [393, 940, 943, 388]


# --- a run


@pytest.mark.parametrize("pack", [False, True])
def test_a_run_with_draws_goes_on_bit_for_bit(make: Make, pack: bool) -> None:
    whole, parts = make("whole", pack_captions=pack), make("parts", pack_captions=pack)
    train(whole)
    train(replace(parts, max_train_steps=2))
    train(replace(parts, resume_from_checkpoint="latest"))
    one, other = (Path(config.output_dir) for config in (whole, parts))
    assert (one / WEIGHTS).read_bytes() == (other / WEIGHTS).read_bytes()
    assert [line["loss"] for line in metrics(one)] == [line["loss"] for line in metrics(other)]


@pytest.mark.parametrize("draws", [1, 3])
def test_a_run_without_padding_measures_what_one_with_it_does(make: Make, draws: int) -> None:
    outs = [
        make(f"packed-{pack}", draws_per_sample=draws, pack_captions=pack, optimizer="sgd") for pack in (True, False)
    ]
    for config in outs:
        train(config)
    ours, theirs = ([line["loss"] for line in metrics(Path(config.output_dir))] for config in outs)
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_run_may_go_on_with_another_number_of_draws(make: Make) -> None:
    train(make(max_train_steps=2))
    assert train(make(draws_per_sample=1, resume_from_checkpoint="latest")).step == 6


def test_runs_with_other_numbers_of_draws_learn_otherwise_and_their_probes_compare(make: Make) -> None:
    reports = [train(make(f"out-{draws}", draws_per_sample=draws)) for draws in (1, 3)]
    assert reports[0].first_probe == reports[1].first_probe
    weights = [load_file(Path(report.output_dir) / WEIGHTS) for report in reports]
    assert 0 < relative_distance(weights[0].values(), weights[1].values()) < 0.1


# --- priors that it is not for


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"added_emb_type": None}, "added_emb_type None instead of prd"),
        ({"additional_embeddings": 5}, "additional_embeddings 5 instead of 4"),
    ],
)
def test_a_prior_that_is_built_otherwise_is_refused(
    make: Make, tiny_prior: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    model = tiny_model("prior", tiny_prior, tiny_prior)
    other = PriorTransformer(**{**model.config, **changes})
    torch.nn.init.ones_(other.clip_std)
    other.save_pretrained(tmp_path / "other" / "prior")
    config = make(pretrained_prior_model_name_or_path=str(tmp_path / "other"))
    with pytest.raises(KcacheError, match=f"--draws-per-sample 3 is for priors .*, and .*other has {reason}; leave"):
        train(config)
    with pytest.raises(KcacheError, match=f"--pack-captions is for priors .*, and .*other has {reason}; leave"):
        train(replace(config, draws_per_sample=1, pack_captions=True))


def test_attention_that_is_unknown_is_refused(model: Any) -> None:
    from diffusers.models.attention_processor import AttnProcessor

    model.set_attn_processor(AttnProcessor())
    assert what_keeps_apart(model) == "attention by AttnProcessor instead of AttnProcessor2_0"
