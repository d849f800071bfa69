"""`kcache gc`: how much of a cache is of the past, and its removal."""

import sys
from collections import defaultdict
from typing import TYPE_CHECKING

import click

from kcache.cli.options import Number
from kcache.cli.say import say
from kcache.cli.shell import stopped_by_sigterm
from kcache.cli.sizes import count, size

if TYPE_CHECKING:
    from kcache.shards.leftovers import Leftover, Leftovers


@click.command()
@click.argument("cache")
@click.option("--compact", metavar="TO", help="Write CACHE anew as TO, without removed rows and in full shards.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--min-age",
    type=Number(min=0),
    default=1.0,
    show_default=True,
    metavar="HOURS",
    help="Leave alone what is younger, or was current until then.",
)
def gc(cache: str, compact: str | None, dry_run: bool, yes: bool, min_age: float) -> int:
    """Remove the files of CACHE that no current commit names: what edits, replaced columns and kills left behind.

    It shows them with their sizes and asks. What a running training reads is left where it is, and so is any file of
    somebody else's. It is refused while the cache is being written to, and where the cache is damaged, since older
    files may be all that is left then. A run whose checkpoint was trained on older rows can be resumed as before, with
    --accept-new-snapshot.

    With --compact nothing is removed from CACHE: its rows are copied into a new cache, bit for bit, but those that
    --prune took out or that never had features and are gone, and shards of many small additions become full ones.

    \b
      kcache gc cache --dry-run
      kcache gc cache --yes
      kcache gc cache --compact smaller
    """
    from kcache.progress import bar
    from kcache.shards import Cache, UsageError
    from kcache.shards.clearing import clear
    from kcache.shards.leftovers import find_leftovers

    if compact is not None:
        if dry_run or yes or min_age != 1:
            raise UsageError("--compact removes nothing, so leave --dry-run, --yes and --min-age out")
        _compact(cache, compact)
        return 0
    opened, seconds = Cache(cache), min_age * 3600
    leftovers = find_leftovers(opened, seconds)
    _show(leftovers, min_age)
    if not leftovers.found:
        say(f"Nothing to remove from {cache}.")
        return 0
    what = _sum(leftovers.found)
    if dry_run:
        say(f"{what} could be removed; nothing was.")
        return 0
    if not yes:
        if not has_terminal():
            raise UsageError(
                f"kcache gc asks before it removes {what}, and there is no terminal to ask at; add --yes, or --dry-run"
            )
        click.confirm(f"Remove {what} for good?", abort=True)
    with bar(len(leftovers.found), "file", "gc") as progress:
        cleared = clear(opened, leftovers, seconds, progress.update)
    say(f"Removed {count(cleared.files, 'file')}, {size(cleared.bytes)}.")
    if cleared.held:
        say(f"{count(cleared.held, 'file')} left, which other programs hold open; run it again when they ended.")
    return 0


def _compact(cache: str, to: str) -> None:
    from kcache.copies import compact
    from kcache.shards import Cache

    with stopped_by_sigterm():
        report = compact(cache, to)
    source, target = Cache(cache), Cache(to)
    planned = sum(len(source.planned_ids(shard)) for shard in range(source.shard_count))
    say(
        f"{to} has the {count(report.samples, 'sample')} of {cache} in {count(target.shard_count, 'shard')} instead of"
        f" {source.shard_count:,}; {count(planned - report.samples, 'removed row')} left out."
    )
    say(f"Next: kcache diff {cache} {to}   (then put it in the place of {cache})")


def has_terminal() -> bool:
    """Whether there is anybody to ask."""
    return sys.stdin.isatty()


def _show(leftovers: "Leftovers", min_age: float) -> None:
    by_kind = defaultdict[str, list["Leftover"]](list)
    for leftover in leftovers.found:
        by_kind[leftover.kind].append(leftover)
    for kind, of_kind in by_kind.items():
        say(f"{kind:22} {count(len(of_kind), 'file'):>14}  {size(sum(one.bytes for one in of_kind)):>10}")
    if leftovers.young:
        say(f"Kept for now, younger than {min_age:g} h (--min-age): {_sum(leftovers.young)}")
    if leftovers.in_use:
        readers = ", ".join(sorted({str(lease) for lease in leftovers.readers})) or "others"
        say(f"Kept for now, in use by {readers}: {_sum(leftovers.in_use)}")
    if leftovers.unfinished:
        say(f"Kept, of shards that are not encoded yet: {_sum(leftovers.unfinished)}")
    if leftovers.unknown:
        names = ", ".join(leftovers.unknown[:3]) + (", ..." if len(leftovers.unknown) > 3 else "")
        say(f"Left alone, not made by kcache: {count(len(leftovers.unknown), 'file')} ({names})")


def _sum(leftovers: list["Leftover"]) -> str:
    return f"{count(len(leftovers), 'file')}, {size(sum(leftover.bytes for leftover in leftovers))}"
