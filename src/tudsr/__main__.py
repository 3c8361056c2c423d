"""`python -m tudsr` is the command `tudsr`."""

from tudsr.apps.cli import main

if __name__ == "__main__":
    main()
