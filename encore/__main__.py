"""`python -m encore COMMAND`: the command `encore` where it is not installed, as in a checkout of the repository."""

from encore.commands import main

if __name__ == "__main__":
    main()
