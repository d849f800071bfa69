"""The one exception that kcache raises on purpose: a sentence that names the thing and the next command."""


class KcacheError(Exception):
    """Something a user can act on; its text is one sentence, shown without a traceback.

    ``exit_code`` is what the command line exits with: 1 an error, 2 wrong usage.
    """

    exit_code = 1


class UsageError(KcacheError):
    """The command was asked for something that cannot be asked for."""

    exit_code = 2


class CacheError(KcacheError):
    """The cache on disk cannot be used as it is."""


class DamageError(CacheError):
    """Bytes in the cache are not the bytes that were committed; names the shard and, where known, the sample."""
