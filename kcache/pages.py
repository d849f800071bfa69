"""What pages of kcache share: their files, templates that escape what they are given, and what a browser may load."""

import base64
import hashlib
from importlib import resources
from typing import Any


def asset(folder: str, name: str) -> str:
    """A file that comes with kcache, as text."""
    return (resources.files("kcache") / "data" / folder / name).read_text("utf-8")


def render(template: str, **values: Any) -> str:
    """A page from a template. Whatever is put in is text, and never markup, unless the template calls it safe."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # What tojson writes cannot end the script block that it stands in; numbers stay short.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.from_string(template).render(**values)


def policy(script: str, style: str, beside: str = "") -> str:
    """What the browser may do with the page: run exactly this script, show embedded pictures, and load nothing.

    ``beside`` names sources that a page may have scripts and pictures from as well: those of files beside it.
    """
    return (
        f"default-src 'none'; img-src data:{beside}; script-src '{_digest(script)}'{beside};"
        f" style-src '{_digest(style)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
