"""The commands of `python -m workbench`, one file each: what it takes, and what it does with it."""
