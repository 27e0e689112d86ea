"""``python -m ccrewrite``: the command line."""

from ccrewrite.cli import main

if __name__ == "__main__":
    main()
