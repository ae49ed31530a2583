"""`python -m buttress`: the `buttress` command."""

from buttress.cli.main import main

if __name__ == "__main__":
    main()
