"""``python -m kcache``: the same command line as ``kcache``."""

from kcache.cli.main import main

if __name__ == "__main__":
    main()
