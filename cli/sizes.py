"""Numbers as people read them."""


def size(nbytes: int) -> str:
    """Such as ``19.7 MB`` (decimal units) or ``512 bytes``."""
    value, units = float(nbytes), ["bytes", "KB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:,.0f} {units[0]}" if units[0] == "bytes" else f"{value:,.1f} {units[0]}"


def count(number: int, noun: str) -> str:
    """Such as ``1 shard`` or ``3,388 samples``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(seconds: float) -> str:
    """Such as ``45 s``, ``12 min`` or ``3.5 h``; the last of them from two hours on."""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
