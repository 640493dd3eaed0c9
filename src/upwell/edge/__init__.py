"""The edge: frames and requests become values, values become frames and answers."""
