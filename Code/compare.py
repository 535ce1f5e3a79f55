"""Compares methods with one budget; utils/commands/compare.py is what it does, and --help says how to start it."""

from utils.commands.compare import main

if __name__ == "__main__":
    main()
