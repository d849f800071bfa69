"""`kcache encode`: a dataset's captions and images through the frozen encoders into a cache."""

from typing import Any

import click

from kcache.cli.options import Choice, ListOption, Number, WholeNumber, make_config
from kcache.cli.reference_options import takes_dataset_options
from kcache.cli.sections import SectionedCommand, section
from kcache.cli.shell import stopped_by_sigterm

what = section("What is encoded")
captions = section("Captions")
dataset_option = section("The dataset")
cache_option = section("The cache")
encoders = section("The encoders")


@click.command(cls=SectionedCommand)
@click.argument("dataset")
@click.argument("cache")
@what(
    "--resolution",
    cls=ListOption,
    type=WholeNumber(min=8),
    help="Side of the pictures for MoVQ, in pixels; several make a column each.  [default: as CACHE has, or 512]",
)
@what("--flip", is_flag=True, default=None, help="Also every picture mirrored, in columns of their own.")
@what(
    "--random-crops",
    type=WholeNumber(min=1),
    metavar="N",
    help="Also N fixed square crops of every picture, in columns of their own.",
)
@what(
    "--crop-scale",
    type=Number(0, 1, min_open=True),
    help="Smallest side of such a crop, of the largest square.  [default: 0.8]",
)
@what("--crop-seed", type=WholeNumber(min=0), help="Other crops for another seed.  [default: 0]")
@what(
    "--buckets",
    is_flag=True,
    default=None,
    help="Also every picture in the nearest of some shapes of equal area, uncropped as far as that goes.",
)
@what("--bucket-step", type=WholeNumber(min=1), help="Sides of buckets are multiples of this.  [default: 64]")
@what(
    "--alpha",
    type=Choice(["white", "drop"]),
    help="Transparent pixels: on white, or as the reference.  [default: as CACHE has, or white]",
)
@what(
    "--columns",
    cls=ListOption,
    metavar="NAME",
    help="Only these: text, image, latents (of every --resolution), or a column's own name.",
)
@captions(
    "--caption-template",
    metavar="TEXT",
    help='Such as "a photo of sks {text}": a text column of its own, beside the plain captions.',
)
@captions("--text-column", metavar="NAME", help="The name of that column: text-NAME.  [default: from the template]")
@captions(
    "--trim-captions/--no-trim-captions",
    default=None,
    help="Run the text encoder at each caption's length instead of 77 tokens: faster, equal but for rounding (2e-6)."
    "  [default: as CACHE has, or not]",
)
@captions("--caption-column", metavar="NAME", help="Where metadata or a table has the captions.  [default: text]")
@dataset_option("--image-column", metavar="NAME", help="The image column of a table.  [default: image, or file_name]")
@dataset_option(
    "--id-column", metavar="NAME", help="What a sample is known by.  [default: its path, or its image's sha256]"
)
@dataset_option("--where", metavar="EXPR", help="Only rows whose metadata fit: 'width >= 512 and \"cat\" in text'.")
@dataset_option("--dataset-config-name", metavar="NAME", help="The configuration of a hub dataset.")
@dataset_option("--split", metavar="NAME", help="The split of a datasets table.  [default: train]")
@dataset_option("--streaming/--no-streaming", default=None, help="Read a hub dataset as it comes, without keeping it.")
@dataset_option("--rehash", is_flag=True, default=None, help="Read every file again: do not go by size and time.")
@dataset_option("--max-pixels", type=WholeNumber(min=1), help="Larger pictures are set aside.  [default: 268435456]")
@dataset_option(
    "--max-upscale",
    type=Number(min=1),
    help="Say how many pictures had to be enlarged by more than this.  [default: 2.0]",
)
@cache_option("--dry-run", is_flag=True, default=None, help="Say what would be done, why, and what it takes.")
@cache_option("--prune", is_flag=True, default=None, help="Take samples out that the dataset has no more.")
@cache_option(
    "--replace-column",
    cls=ListOption,
    metavar="NAME",
    help="Make these columns anew, by other encoders or options than they were made.",
)
@cache_option("--format", type=Choice(["tar", "h5"]), help="WebDataset or HDF5 shards.  [default: tar]")
@cache_option(
    "--shard-size",
    type=WholeNumber(min=1),
    help="Samples in a shard; a kill costs about one shard's encoding.  [default: 256]",
)
@cache_option(
    "--local-cache",
    metavar="DIR",
    help="Where records of a CACHE in s3:// are kept.  [default: ~/.cache/kcache/stores]",
)
@cache_option("--local-cache-size", metavar="SIZE", help="The most bytes of its shards there.  [default: 32GB]")
@cache_option(
    "--license", metavar="NAME", help="Licence of the data, such as cc-by-4.0, for the card of CACHE (its README.md)."
)
@encoders(
    "--pretrained-prior-model-name-or-path",
    metavar="NAME",
    help="Where the CLIP encoders come from: a hub id or a folder."
    "  [default: as CACHE has, or kandinsky-community/kandinsky-2-2-prior]",
)
@encoders(
    "--pretrained-decoder-model-name-or-path",
    metavar="NAME",
    help="Where MoVQ comes from: a hub id or a folder."
    "  [default: as CACHE has, or kandinsky-community/kandinsky-2-2-decoder]",
)
@encoders("--revision", metavar="NAME", help="Branch, tag or commit on the hub, for both checkpoints.")
@encoders("--variant", metavar="NAME", help="Variant of the weights, such as fp16.")
@encoders("--cache-dir", metavar="DIR", help="Where downloads from the hub are kept.")
@encoders(
    "--encode-dtype",
    type=Choice(["fp32", "fp16", "bf16"]),
    help="What the encoders compute in.  [default: as CACHE has; fp16 on a GPU, fp32 on a CPU]",
)
@encoders("--store-dtype", type=Choice(["fp16", "fp32"]), help="What is stored.  [default: as CACHE has, or fp16]")
@encoders("--device", metavar="NAME", help="Such as cuda:1 or cpu.  [default: the first GPU, else the CPU]")
@encoders(
    "--batch-size",
    type=WholeNumber(min=1),
    help="Samples that an encoder takes at once; halved where memory is short.  [default: by the device; 16 on a CPU]",
)
@encoders(
    "--compile",
    is_flag=True,
    default=None,
    help="Let torch compile the encoders: minutes at the start, then faster batches on a GPU; equal but for rounding.",
)
@encoders("--workers", type=WholeNumber(min=1), help="Threads that decode pictures.  [default: cores, at most 8]")
@takes_dataset_options
def encode(**options: Any) -> int:
    """Encode the captions and images of DATASET into CACHE, once; run it again whenever DATASET has changed.

    DATASET is a folder of pictures with metadata.jsonl or metadata.csv (columns file_name and text), or with a text
    file beside each picture; WebDataset tars; a parquet, csv or jsonl file; a folder that the datasets library saved;
    or the name of a dataset on the hub.

    What CACHE holds is not encoded again: only what was added, and of what was edited only the columns that it
    feeds. Without --columns, all columns of CACHE are brought up to date. Killed at any moment and run again, it goes
    on from the last shard that was committed. Exit code 3: done, but some samples were set aside.

    \b
      kcache encode my-pictures cache
      kcache encode my-pictures cache --dry-run              what an edit would cost, and why
      kcache encode my-pictures cache --resolution 768       adds the column latents-768
      kcache encode "tars/{00000..00099}.tar" cache --where "similarity > 0.3"
      kcache encode user/dataset cache --caption-column caption --format h5
    """
    from kcache.cli.encode_summary import print_dry_run, print_summary
    from kcache.encoding.config import EncodeConfig

    config = make_config(EncodeConfig, options)
    with stopped_by_sigterm():
        from kcache.encoding.encode import encode as encode_dataset  # inside, for it takes seconds

        report = encode_dataset(config)
    if config.dry_run:
        print_dry_run(config, report)
    else:
        print_summary(config, report)
    return 3 if report.set_aside else 0
