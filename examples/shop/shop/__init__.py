"""The back end of a small web shop."""

__version__ = "1.4.0"
