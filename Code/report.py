"""Shows what runs left in one page; utils/commands/report.py is what it does, and --help says how to start it."""

from utils.commands.report import main

if __name__ == "__main__":
    main()
