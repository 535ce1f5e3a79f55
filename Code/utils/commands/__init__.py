"""The scripts that an installed package has, too: their command lines, and what they do."""
