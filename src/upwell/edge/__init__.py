"""Edge: frames and bodies ⇄ values, and the one map from errors to what the wire shows."""
