"""The benchmarks: each keeps its figures, documents name each run that was kept, and their commands are commands."""

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    path.stem: path.read_text("utf-8")
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if '__name__ == "__main__"' in path.read_text("utf-8")
}
WITHOUT_FIGURES = {"schedule_picture", "stopwatch"}
"""One draws a picture; the other is run by a benchmark, with the program that it times in place of options."""
DOCUMENTS = {path.name: path.read_text("utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def options(script: str) -> set[str]:
    """The options of a benchmark, read from its calls of ``add_argument``."""
    found = {"--help"}
    for node in ast.walk(ast.parse(SCRIPTS[script])):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument"):
            found |= {ast.literal_eval(word) for word in node.args}
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "add_json_option":
            found.add("--json")
    return found


@pytest.mark.parametrize("script", sorted(SCRIPTS.keys() - WITHOUT_FIGURES))
def test_every_benchmark_writes_its_figures_to_a_file(script: str) -> None:
    assert "--json" in options(script)


@pytest.mark.parametrize("result", RESULTS, ids=lambda path: path.stem)
def test_every_run_that_was_kept_is_named_in_the_documents_and_can_be_repeated(result: Path) -> None:
    assert any(result.name in text for text in DOCUMENTS.values()), f"no document names {result.name}"
    kept = json.loads(result.read_text("utf-8"))
    assert kept["figures"]
    assert {"date", "processor", "cores", "load", "versions"} <= kept["machine"].keys()
    check(kept["machine"]["command"], result.name)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_benchmark_that_a_document_runs_has_the_options_it_gives(name: str) -> None:
    for line in re.findall(r"python benchmarks/\w+\.py[^`\n|]*", DOCUMENTS[name]):
        check(line.split("   ")[0], name)


@pytest.mark.parametrize("script", sorted(SCRIPTS.keys() - WITHOUT_FIGURES))
def test_every_command_that_a_benchmark_begins_with_is_one(script: str) -> None:
    for line in re.findall(r"^    python benchmarks/.*$", SCRIPTS[script], re.MULTILINE):
        check(line.strip().split("   ")[0], script)


def check(command: str, where: str) -> None:
    """That a benchmark has all options that a command line gives it."""
    found = re.match(r"python benchmarks/(\w+)\.py(.*)", command)
    assert found, f"{where}: {command}"
    script, rest = found.groups()
    assert script in SCRIPTS, f"{where} runs benchmarks/{script}.py, which is no benchmark"
    unknown = {word for word in shlex.split(rest) if word.startswith("--")} - options(script)
    assert not unknown, f"{where} gives benchmarks/{script}.py {', '.join(sorted(unknown))}, which it has not"
