"""The main job, `upwell demo`: a phone's data through every part of a real server, and back to a new phone.

Law: each part talks to the server from outside (HTTP, WebSocket, SQLite and Parquet files), and what it finds
is compared with what was expected without the server's help.
"""

from upwell.demo.run import run_demo

__all__ = ["run_demo"]
