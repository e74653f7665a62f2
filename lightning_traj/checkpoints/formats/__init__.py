"""Formats of checkpoint files, and how they are read without running anything in them."""
