"""Hostile and random input for whatever listens; see __main__.py."""
