"""`python -m rwkvbatch`."""

from rwkvbatch.cli import main

if __name__ == "__main__":
    main()
