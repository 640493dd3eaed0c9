"""The only wiring: builds a server from its settings, starts it, stops it."""

from upwell.app.serving import run

__all__ = ["run"]
