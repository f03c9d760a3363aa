"""``python -m planner`` is the same as ``kvplan``."""

from planner.cli import main

main()
