"""`python -m twinspire`: the command line."""

from __future__ import annotations

from twinspire.cli import main

if __name__ == "__main__":
    main()
