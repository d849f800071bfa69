"""`kcache generate` as a library: what is asked for is checked, then made, then written with how it was made."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kcache.progress import bar, logger
from kcache.text_features import token_counts

from .config import GenerateConfig, GenerateReport
from .metadata import grid_record, picture_record, png_text, run_record
from .output import GRID, is_folder, refuse_output, save, sheet, write_files
from .pictures import make_pictures
from .pipelines import Pipelines, load_pipelines
from .sources import read_source
from .wanted import Wanted, wanted_pictures


def generate(config: GenerateConfig) -> GenerateReport:
    """Make ``num_images_per_prompt`` pictures of each prompt and mix, and write them to one file or into a folder.

    Picture N of a prompt has the seed ``seed + N``, whatever else is made and on whatever device. KcacheError for what
    cannot be made, before anything is.
    """
    wanted = wanted_pictures(config)
    refuse_output(config.output, len(wanted))
    read_source(config)
    pipelines = load_pipelines(config)
    _warn_of_cut(pipelines.prior.tokenizer, wanted)
    pictures = _shown(make_pictures(pipelines, wanted, config), len(wanted))
    return _written(pictures, wanted, config, pipelines.side)


def pictures_of(
    prompts: Sequence[str], config: GenerateConfig, pipelines: Pipelines | None = None
) -> list[Image.Image]:
    """The pictures of ``prompts``, those of each one after the other; nothing is written.

    Seeds, steps and guidance are those of ``config``; with ``pipelines`` that `load_pipelines` gave, nothing is loaded.
    """
    wanted = [Wanted(one, config.seed + n, config.negative_prompt) for one in prompts for n in _numbers(config)]
    return list(make_pictures(pipelines or load_pipelines(config), wanted, config))


def _numbers(config: GenerateConfig) -> range:
    return range(config.num_images_per_prompt)


def _warn_of_cut(tokenizer: Any, wanted: Sequence[Wanted]) -> None:
    """Say which prompts have more tokens than the text encoder takes."""
    prompts = dict.fromkeys(text for one in wanted for text in one.texts)
    limit = tokenizer.model_max_length
    for prompt, tokens in zip(prompts, token_counts(tokenizer, list(prompts)), strict=True):
        if tokens > limit:
            logger.warning("the prompt '%s' is cut to %d tokens: it has %d", prompt, limit, tokens)


def _written(
    pictures: Iterator[Image.Image], wanted: Sequence[Wanted], config: GenerateConfig, side: int
) -> GenerateReport:
    run, folder = run_record(config, side) if config.metadata else None, is_folder(config.output)

    def text(one: Wanted) -> object:
        return png_text(picture_record(run, one, config)) if run else None

    if folder:
        made = write_files(Path(config.output), pictures, wanted, text)
        if not made:
            return GenerateReport(config.output, len(wanted), 0, 0, folder)
    else:
        made = list(pictures)
    whole = sheet(made, wanted, config.num_images_per_prompt, captions=config.captions)
    one_alone = len(wanted) == 1 and not config.captions
    how = text(wanted[0]) if one_alone else png_text(grid_record(run, wanted, config)) if run else None
    save(whole, Path(config.output, GRID) if folder else Path(config.output), how)
    return GenerateReport(config.output, len(wanted), *whole.size, folder)


def _shown(pictures: Iterator[Image.Image], count: int) -> Iterator[Image.Image]:
    """The same pictures, with a bar that says how many there are."""
    with bar(count, "img", "generate") as progress:
        for picture in pictures:
            progress.update(1)
            yield picture
