"""Sessions: who is it, what may they do, and what does each Statement become."""
