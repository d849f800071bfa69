"""The rules of the house, kept by reading every file: who may import whom, and what is never loaded."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from kcache.cli.main import COMMANDS
from kcache.cli.train import COMMANDS as TRAIN_COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGES = {"kcache": "kcache", "cli": "kcache.cli", "shards": "kcache.shards"}  # folder -> where it installs
HEAVY = {"torch", "transformers", "diffusers", "accelerate", "datasets", "peft", "webdataset", "h5py", "numpy", "PIL"}
SHARED_CLI_FILES = {
    "encode_summary",
    "picture_info",
    "reference_options",
    "say",
    "sections",
    "sizes",
    "train_options",
    "train_summary",
    "__init__",
    "main",
    "options",
    "shell",
}


def files(*folders: str) -> list[Path]:
    """Python files below the folders; the symlinks kcache/cli and kcache/shards are not followed."""
    return sorted(path for folder in folders for path in walk(ROOT / folder))


def walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            yield from walk(path)
        elif path.suffix == ".py":
            yield path


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    """The name that a file's module has once installed."""
    folder, *parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGES[folder], *parts]).removesuffix(".__init__")


def imports(path: Path, *, at_import: bool = False) -> set[str]:
    """Every module a file may import, relative ones resolved; ``at_import``: only those outside functions."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    names: set[str] = set()
    for node in statements(parse(path), at_import):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names.update([source, *(f"{source}.{alias.name}" for alias in node.names)])
    return names


def statements(node: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            if not at_import:
                yield from statements(child, at_import)
            continue
        yield child
        yield from statements(child, at_import)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def run_python(code: str) -> set[str]:
    """The modules that are loaded after running ``code`` in a fresh interpreter."""
    code = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("path", files("shards"), ids=module_name)
def test_shards_import_nothing_of_kcache_but_shards(path: Path) -> None:
    back = {name for name in imports(path) if within(name, "kcache") and not within(name, "kcache.shards")}
    assert not back - {"kcache"}, f"{module_name(path)} imports {sorted(back)}"


@pytest.mark.parametrize("path", files("kcache"), ids=module_name)
def test_kcache_never_imports_the_command_line(path: Path) -> None:
    if module_name(path) != "kcache.__main__":
        assert not [name for name in imports(path) if within(name, "kcache.cli")]


@pytest.mark.parametrize(("one", "other"), [("encoding", "training"), ("training", "encoding")])
def test_encoding_and_training_meet_only_on_disk(one: str, other: str) -> None:
    for path in files(f"kcache/{one}"):
        assert not [name for name in imports(path) if within(name, f"kcache.{other}")], path


def test_what_both_use_imports_neither_encoding_nor_training() -> None:
    beside = [path for path in files("kcache") if path.parent == ROOT / "kcache"]
    for path in beside:
        upward = [n for n in imports(path, at_import=True) if within(n, "kcache.encoding", "kcache.training")]
        assert not upward, f"{module_name(path)} imports {upward} when it is imported"


def test_the_package_itself_imports_nothing_heavy() -> None:
    assert not [name for name in imports(ROOT / "kcache/__init__.py") if name.partition(".")[0] in HEAVY]


@pytest.mark.parametrize("path", files("cli"), ids=module_name)
def test_commands_import_heavy_things_only_inside_their_bodies(path: Path) -> None:
    assert not [name for name in imports(path, at_import=True) if name.partition(".")[0] in HEAVY]


def test_importing_the_shards_loads_no_torch() -> None:
    assert "torch" not in run_python("import kcache.shards")


@pytest.mark.parametrize("line", ["['--help']", "['train', '--help']", "['--version']"])
def test_help_loads_nothing_heavy(line: str) -> None:
    loaded = run_python(f"from kcache.cli.main import cli\ncli.main({line}, standalone_mode=False)")
    assert not loaded & HEAVY


@pytest.mark.parametrize("path", files("kcache", "cli", "shards", "tests", "benchmarks", "examples"), ids=str)
def test_every_file_opens_with_a_sentence(path: Path) -> None:
    docstring = ast.get_docstring(parse(path))
    assert docstring, f"{path} has no docstring"
    assert docstring.split("\n\n")[0].rstrip().endswith((".", ":", "?", "!")), f"{path} opens with no sentence"


@pytest.mark.parametrize("path", files("kcache", "cli", "shards", "benchmarks", "examples"), ids=str)
def test_no_file_can_run_a_pickle(path: Path) -> None:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not {"pickle", "cloudpickle", "dill", "joblib"} & {name.partition(".")[0] for name in modules}
        if isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno} allows pickles"
            if ast.unparse(node.func) == "torch.load":
                assert given.get("weights_only") == "True", f"{path}:{node.lineno} loads a pickle"


COMMAND_FILES = {
    **{name: target for name, (target, _) in COMMANDS.items()},
    **{f"train {name}": target for name, (target, _) in TRAIN_COMMANDS.items()},
}


@pytest.mark.parametrize(("command", "target"), COMMAND_FILES.items())
def test_a_command_is_found_by_its_name(command: str, target: str) -> None:
    stem, attribute = command.replace(" ", "_").replace("-", "_"), command.split()[-1].replace("-", "_")
    assert target == f"kcache.cli.{stem}:{attribute}"
    tree = parse(ROOT / "cli" / f"{stem}.py")
    made = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    made |= {ast.unparse(t) for node in tree.body if isinstance(node, ast.Assign) for t in node.targets}
    assert attribute in made


def test_every_file_of_the_command_line_is_a_command_or_shared() -> None:
    commands = {target.split(":")[0].rpartition(".")[2] for target in COMMAND_FILES.values()}
    assert {path.stem for path in files("cli")} <= commands | SHARED_CLI_FILES
