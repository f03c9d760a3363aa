"""The command line."""

from planner.cli.app import main

__all__ = ["main"]
