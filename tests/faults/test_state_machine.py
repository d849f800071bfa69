"""A cache's life at random, beside a model in memory: after every move it holds, and says, what the model does."""

import logging
from pathlib import Path

import pytest
from cache_machine import CacheMachine, World
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from tally import Tally

pytestmark = pytest.mark.usefixtures("fast")

PHASES = [Phase.generate, Phase.shrink]
SAMPLE = settings(max_examples=24, stateful_step_count=20, phases=PHASES, suppress_health_check=list(HealthCheck))
FULL = settings(SAMPLE, max_examples=1_500, stateful_step_count=40)


@pytest.mark.parametrize(
    "size", [pytest.param(SAMPLE, id="sample"), pytest.param(FULL, id="all", marks=pytest.mark.torture)]
)
def test_whatever_happens_to_a_cache_it_holds_what_a_model_in_memory_holds(
    tmp_path: Path, tiny_prior: Path, tiny_decoder: Path, tally: Tally, size: settings
) -> None:
    checkpoints = {
        "pretrained_prior_model_name_or_path": str(tiny_prior),
        "pretrained_decoder_model_name_or_path": str(tiny_decoder),
    }

    class Machine(CacheMachine):
        world = World(tmp_path, checkpoints, tally)

    logging.getLogger("kcache").setLevel(logging.ERROR)
    run_state_machine_as_test(Machine, settings=size)
