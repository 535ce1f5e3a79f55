"""Evaluates a saved synthetic set; utils/commands/evaluate.py is what it does, and --help says how to start it."""

from utils.commands.evaluate import main

if __name__ == "__main__":
    main()
