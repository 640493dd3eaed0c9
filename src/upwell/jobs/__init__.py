"""Jobs: work that outlives its request: durable, leased to one runner, retried, visible by SQL."""
