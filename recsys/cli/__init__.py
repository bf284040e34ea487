"""The `recsys` command: one file for each group of commands."""

import sys


def run() -> None:
    """Entry point of the command: Ctrl-C is one line also while the modules are still being loaded."""
    try:
        from recsys.cli.main import main

        main()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        raise SystemExit(130) from None
