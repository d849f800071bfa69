"""The `kcache` command line: which command lives in which file, and the help that leads to them."""

from typing import NoReturn

import click

from kcache import __version__
from kcache.cli.options import dashes_for_underscores
from kcache.cli.shell import Shell, verbosity_options

# name -> (module:attribute, one line of help). The modules are imported when their command is run, never for --help.
COMMANDS = {
    "encode": ("kcache.cli.encode:encode", "Encode a dataset's captions and images into a cache, once."),
    "info": ("kcache.cli.info:info", "Show what a cache holds and what made it."),
    "verify": ("kcache.cli.verify:verify", "Check a cache's bytes against what was committed."),
    "gc": ("kcache.cli.gc:gc", "Remove what no current commit of a cache names."),
    "preview": ("kcache.cli.preview:preview", "Show what is in a cache on a page: pictures, captions, oddities."),
    "diff": ("kcache.cli.diff:diff", "Say in what two caches differ, and why."),
    "convert": ("kcache.cli.convert:convert", "Write a cache anew in files of another kind or size."),
    "merge": ("kcache.cli.merge:merge", "Write several caches with the same columns as one."),
    "plan": ("kcache.cli.plan:plan", "Say what fits a GPU, with which options, and how long it takes."),
    "train": ("kcache.cli.train:train", "Train the prior or the decoder from a cache."),
    "generate": ("kcache.cli.generate:generate", "Make pictures from prompts with what was trained."),
    "export": ("kcache.cli.export:export", "Merge a LoRA, or write a whole pipeline, from what was trained."),
    "report": ("kcache.cli.report:report", "Show training runs on one page: curves, pictures, options."),
    "demo": ("kcache.cli.demo:demo", "Run all of it on pictures that come with kcache, on a laptop."),
    "doctor": ("kcache.cli.doctor:doctor", "Describe this machine and installation, for a bug report."),
}

cli = Shell(
    "kcache",
    COMMANDS,
    params=verbosity_options(),
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": dashes_for_underscores,
        "max_content_width": 100,
    },
    help="""Fine-tune Kandinsky 2.2 without running its frozen encoders at every step.

    One pass encodes all captions and images; the trainers read only what was encoded. What they write loads in stock
    diffusers.

    \b
    From a folder of captioned pictures to a model:
      kcache encode my-pictures cache --resolution 512
      kcache train prior cache --output-dir my-prior
      kcache train decoder cache --output-dir my-decoder
      kcache generate "a red fox" --prior my-prior --decoder my-decoder

    \b
    All of it on a laptop, with nothing to download:
      kcache demo

    Every command explains itself: kcache COMMAND --help. Underscores in option names are accepted for dashes, as in
    --train_batch_size; -v and -q may also follow the command.
    """,
)
click.version_option(__version__, prog_name="kcache")(cli)


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 an error, 2 wrong usage, 3 done but some samples were set aside."""
    cli.main(prog_name="kcache")
