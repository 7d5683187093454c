"""Placeholder, replaced by the lazy public names."""
