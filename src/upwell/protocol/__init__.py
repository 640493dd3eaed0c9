"""The wire: the messages that a server and its clients exchange, and their bytes."""
