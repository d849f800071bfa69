"""Progress bars with rates, on stderr; silent under ``-q``, sparse where stderr is a file."""

import logging
import sys
from typing import Any

logger = logging.getLogger("kcache")


def bar(total: int, unit: str, description: str, *, initial: int = 0, scale: bool = False, shown: bool = True) -> Any:
    """A tqdm bar. In a log file it writes a line's worth every half minute instead of ten times a second."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=initial,
        unit=f" {unit}",
        unit_scale=scale,
        desc=description,
        disable=not shown or not total or logger.getEffectiveLevel() > logging.INFO,
        mininterval=0.2 if sys.stderr.isatty() else 30.0,
        dynamic_ncols=True,
    )


def hush_libraries() -> None:
    """Keep the bars and advice of diffusers and transformers off the terminal: kcache says what it does itself."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
