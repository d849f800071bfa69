"""The README's map gives every file the sentence that the file itself opens with, and its commands exist."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("shards", "kcache", "kcache/encoding", "kcache/training", "kcache/generating", "kcache/planning", "cli")


def opening_sentence(path: Path) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def file_map() -> str:
    """The map as the README must have it: run ``python tests/test_readme.py`` to print it."""
    lines = []
    for folder in FOLDERS:
        init = ROOT / folder / "__init__.py"
        lines.append(f"\n**`{folder}/`** {opening_sentence(init)}\n\n| file | |\n|---|---|")
        files = sorted(path for path in (ROOT / folder).glob("*.py") if not path.name.startswith("__"))
        lines += [f"| `{path.name}` | {opening_sentence(path)} |" for path in files]
    return "\n".join(lines).strip()


def test_the_readme_maps_every_file_by_its_own_opening_sentence() -> None:
    """A stranger finds a file by the sentence that says what it holds."""
    assert file_map() in (ROOT / "README.md").read_text(), f"README.md needs this map:\n\n{file_map()}"


def test_every_link_in_the_documents_leads_somewhere() -> None:
    """Links to files of the repository exist."""
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}, which does not exist"


def test_every_test_that_the_format_promises_by_is_in_the_file_named() -> None:
    """``file.py::test`` below tests/, or a whole file; no beginnings of names."""
    document = (ROOT / "docs" / "format.md").read_text()
    named = [name for name in re.findall(r"`([^`\n]+)`", document) if re.search(r"\btest_", name)]
    assert len(named) > 50
    for name in named:
        file, _, test = name.partition("::")
        path = ROOT / "tests" / file
        assert path.is_file(), f"docs/format.md names {name}, and there is no tests/{file}"
        assert not test or f"\ndef {test}(" in path.read_text(), f"docs/format.md names {name}: {file} lacks it"


if __name__ == "__main__":
    sys.stdout.write(file_map())
