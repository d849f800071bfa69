"""A cache's life at random, beside a model in memory: after every move it holds, and says, what the model does."""

import logging
from pathlib import Path

import hypothesis
import pytest
from cache_machine import CacheMachine, World
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tally import Tally

pytestmark = pytest.mark.usefixtures("fast")

SAMPLE = settings(
    max_examples=12,
    stateful_step_count=20,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
FULL = settings(SAMPLE, max_examples=50, stateful_step_count=30)


@pytest.mark.parametrize(
    ("seed", "size"),
    [
        pytest.param(0, SAMPLE, id="sample"),
        *(pytest.param(n, FULL, id=f"seed-{n}", marks=pytest.mark.torture) for n in range(1, 5)),
    ],
)
def test_whatever_happens_to_a_cache_it_holds_what_a_model_in_memory_holds(
    tmp_path: Path,
    tiny_prior: Path,
    tiny_decoder: Path,
    tally: Tally,
    caplog: pytest.LogCaptureFixture,
    seed: int,
    size: settings,
) -> None:
    checkpoints = {
        "pretrained_prior_model_name_or_path": str(tiny_prior),
        "pretrained_decoder_model_name_or_path": str(tiny_decoder),
    }

    class Machine(CacheMachine):
        world = World(tmp_path, checkpoints, tally)

    hypothesis.seed(seed)(Machine)
    caplog.set_level(logging.ERROR, logger="kcache")
    run_state_machine_as_test(Machine, settings=size)
