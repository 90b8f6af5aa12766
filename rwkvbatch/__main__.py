"""`python -m rwkvbatch`."""

from __future__ import annotations

from rwkvbatch.cli import main

if __name__ == "__main__":
    main()
