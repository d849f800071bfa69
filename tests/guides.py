"""The shell blocks of the documents: where each stands, how it is marked, and the commands that bash makes of it."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = "kcache|python|pip|hf|aws|torchrun|accelerate|tensorboard|srun"
"""What a command begins with; a block without any of them shows output or a format."""

FENCED = re.compile(
    r"^(?:<!-- (?P<kind>run by|not run): (?P<said>.+?) -->\n)?"
    r"(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """What stands between two fences; ``kind`` and ``said`` are of the comment in the line above, if there is one."""

    page: str
    line: int
    language: str
    text: str
    kind: str
    said: str

    @property
    def is_typed(self) -> bool:
        """Whether it is for a shell: it has a command, or gives a variable a value."""
        begins = rf"^ *(?:\$ )?(?:(?:{PROGRAMS}) |[A-Z]+=)"
        return self.language in ("", "bash") and re.search(begins, self.text, re.MULTILINE) is not None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> Iterator[Block]:
    """All of a document, in their order; ``page`` is its path in the repository."""
    text = (ROOT / page).read_text("utf-8")
    for found in FENCED.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(page, line, found["language"], found["text"], found["kind"] or "", found["said"] or "")


def expand(block: str, before: str, folder: Path) -> list[list[str]]:
    """The words of each command in a block, with variables, loops and patterns as bash has them in ``folder``.

    ``before`` is what was typed already: its variables count. Any program but kcache and python is an error.
    """
    tell = 'for name in kcache python; do eval "$name() { printf \'%s\\037\' $name \\"\\$@\\"; echo; }"; done'
    script = f"{tell}\n{{ :\n{before}\n}} > /dev/null\n{block}"
    bash = [shutil.which("bash") or "bash", "-euc", script]
    told = subprocess.run(bash, cwd=folder, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert told.returncode == 0, f"{block}\n{told.stderr}"
    return [line.split("\x1f")[:-1] for line in told.stdout.splitlines()]
