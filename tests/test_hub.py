"""``--push-to-hub``: the hub's own client against a small hub on this machine."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finished_runs import write_run
from hub_server import TOKEN, Hub, serve_hub

from kcache.shards import KcacheError, UsageError
from kcache.training.config import PriorConfig
from kcache.training.hub import prepare, public_record, upload

# How the hub's client calls its HTTP library is its own business.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The hub that the client talks to during a test; nobody is logged in."""
    from huggingface_hub import constants

    with serve_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its client would ask a server of its own
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished run with everything that must stay here."""
    out = write_run(tmp_path / "my-prior", cache=str(tmp_path / "cache"), mix=((str(tmp_path / "b"), 0.3),))
    for name in ("prior/config.json", "prior/diffusion_pytorch_model.safetensors", "checkpoint-10/state.json", ".lock"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("{}" if name.endswith("json") else "weights")
    (out / "logs").mkdir()
    (out / "logs" / "events.out").write_text("events")
    return out


def config(out: Path, **options: Any) -> PriorConfig:
    chosen = {"cache": "cache", "output_dir": str(out), "push_to_hub": True, "hub_token": TOKEN} | options
    return PriorConfig(**chosen)


def test_without_push_to_hub_nothing_is_asked(hub: Hub, out: Path) -> None:
    assert prepare(config(out, push_to_hub=False)) is None
    assert hub.asked == []


def test_the_repository_is_made_before_training_and_named_as_the_folder(hub: Hub, out: Path) -> None:
    assert prepare(config(out)) == "tester/my-prior"
    assert hub.repositories == {"tester/my-prior": {}}
    assert hub.private == set()
    assert prepare(config(out)) == "tester/my-prior"  # as a run that goes on finds it


def test_a_repository_may_be_named_and_private(hub: Hub, out: Path) -> None:
    assert prepare(config(out, hub_model_id="tester/fox", hub_private_repo=True)) == "tester/fox"
    assert hub.private == {"tester/fox"}


def test_a_login_is_used_where_no_token_is_given(hub: Hub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert prepare(config(out, hub_token=None)) == "tester/my-prior"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hub_token": None}, r"it knows no such login\); run 'hf auth login', or set HF_TOKEN"),
        ({"hub_token": "hf_wrong"}, "run 'hf auth login', or set HF_TOKEN"),
        ({"hub_model_id": "others/fox"}, "give a token that may write there .* or another --hub-model-id"),
    ],
)
def test_who_may_not_write_is_told_before_training(hub: Hub, out: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(KcacheError, match=said) as raised:
        prepare(config(out, **options))
    assert "\n" not in str(raised.value)
    assert "hf_wrong" not in str(raised.value)


def test_a_repository_that_may_only_be_read_is_refused_before_training(hub: Hub, out: Path) -> None:
    hub.read_only = True
    with pytest.raises(
        KcacheError, match=r"the hub does not take my-prior \(this login may not write there\); give a token"
    ):
        prepare(config(out))


def test_a_name_that_cannot_be_one_is_refused(hub: Hub, out: Path) -> None:
    with pytest.raises(UsageError, match=r"'a--b\.\.c' cannot be a name on the hub .*--hub-model-id"):
        prepare(config(out, hub_model_id="a--b..c"))


def test_offline_is_said(hub: Hub, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    try:
        with pytest.raises(KcacheError, match="unset HF_HUB_OFFLINE"):
            prepare(config(out))
    finally:
        close_session()


def test_the_result_is_uploaded_in_one_commit_and_nothing_else(hub: Hub, out: Path) -> None:
    chosen = config(out)
    repo_id = prepare(chosen)
    assert repo_id is not None
    upload(chosen, repo_id, out)
    files = hub.repositories[repo_id]
    assert sorted(files) == [
        "README.md",
        "prior/config.json",
        "prior/diffusion_pytorch_model.safetensors",
        "training.json",
        "validation.png",
    ]
    assert files["prior/diffusion_pytorch_model.safetensors"] == b"weights"
    assert files["validation.png"] == (out / "validation" / "step-000200.png").read_bytes()
    assert 'from_pretrained("tester/my-prior", subfolder="prior")' in files["README.md"].decode()
    assert len(hub.commits) == 1
    assert "POST /api/validate-yaml" in hub.asked


def test_nothing_that_is_uploaded_names_this_machine(hub: Hub, out: Path, tmp_path: Path) -> None:
    chosen = config(out)
    upload(chosen, str(prepare(chosen)), out)
    for name, data in hub.repositories["tester/my-prior"].items():
        assert str(tmp_path).encode() not in data, name
        assert TOKEN.encode() not in data, name
    options = json.loads(hub.repositories["tester/my-prior"]["training.json"])["options"]
    assert options["cache"] == "cache"
    assert options["mix"] == [["b", 0.3]]
    assert options["learning_rate"] == 1e-4
    assert "output_dir" not in options


def test_names_on_the_hub_stay_in_the_public_record() -> None:
    name = "kandinsky-community/kandinsky-2-2-prior"
    record = {"trained_from": name, "options": {"pretrained_prior_model_name_or_path": name, "hub_model_id": "x"}}
    told = public_record(record)
    assert told == {"trained_from": name, "options": {"pretrained_prior_model_name_or_path": name}}


def test_a_lora_is_uploaded_as_one_file(hub: Hub, out: Path) -> None:
    import shutil

    shutil.rmtree(out / "prior")
    (out / "pytorch_lora_weights.safetensors").write_text("lora")
    chosen = config(out)
    upload(chosen, str(prepare(chosen)), out)
    assert hub.repositories["tester/my-prior"]["pytorch_lora_weights.safetensors"] == b"lora"


def test_an_upload_that_fails_leaves_all_and_says_what_to_run(hub: Hub, out: Path) -> None:
    chosen = config(out)
    repo_id = str(prepare(chosen))
    hub.broken = True
    with pytest.raises(KcacheError, match="was not uploaded") as raised:
        upload(chosen, repo_id, out)
    command = shlex.split(str(raised.value).split("'")[1])
    assert command[:5] == ["hf", "upload", repo_id, str(out), "."]
    assert (out / "prior" / "diffusion_pytorch_model.safetensors").is_file()
    hub.broken = False
    run_hf(command)
    files = hub.repositories[repo_id]
    assert "prior/diffusion_pytorch_model.safetensors" in files
    assert not [name for name in files if name.startswith(("checkpoint", "logs", "validation/", ".", "training"))]


def run_hf(command: list[str]) -> None:
    """Run the hub's command line in this process, with the login that the test has."""
    from click.testing import CliRunner
    from huggingface_hub.cli.hf import app

    result = CliRunner().invoke(app, [*command[1:], "--token", TOKEN])
    assert result.exit_code == 0, result.output
