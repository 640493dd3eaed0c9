"""Feeds: what reads the log for somebody: live queries and devices."""
