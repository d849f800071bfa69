"""`kcache verify`: are the bytes of a cache those that were committed?"""

import click

from kcache.cli.sizes import count, size


@click.command()
@click.argument("cache")
@click.option(
    "--deep", is_flag=True, help="Read every byte: sha256 of every shard, crc32 of the samples in damaged ones."
)
def verify(cache: str, deep: bool) -> int:
    """Check CACHE: every record's checksum, every file's size and index; with --deep every byte.

    Exit code 0: all is as it was committed. 1: something is not; each fault is a line that names the file and what is
    lost. A shard that is not encoded yet is no fault.

    \b
      kcache verify cache
      kcache verify cache --deep
    """
    from kcache.progress import bar
    from kcache.shards import Cache
    from kcache.shards.verify import committed_bytes
    from kcache.shards.verify import verify as verify_cache

    opened = Cache(cache)
    with bar(committed_bytes(opened) if deep else 0, "B", "verify", scale=True) as progress:
        result = verify_cache(opened, deep=deep, progress=progress.update if deep else lambda nbytes: None)
    for fault in result.faults:
        click.echo(f"{fault.path}: {fault.problem}")
    for name, missing in result.missing_shards.items():
        if missing > 0:
            verb = "is" if missing == 1 else "are"
            click.echo(
                f"{name}: {count(missing, 'shard')} {verb} not encoded yet; 'kcache encode DATASET {cache}' goes on"
            )
    checked = f"{count(result.files, 'file')}, {size(result.bytes)}" + (
        "" if deep else " (sizes and records; --deep reads all)"
    )
    if result.faults:
        click.echo(
            f"{count(len(result.faults), 'fault')} in {checked}; copy those files again, or remove the commits of their"
            " shards (commits/COLUMN/SHARD.*.json) and run 'kcache encode', which then encodes these shards again"
        )
        return 1
    click.echo(f"No fault in {checked}.")
    return 0
