"""Upwell: a realtime SQL database, a tiered store and a device sync server on one change log."""

__version__ = "0.1.0"
