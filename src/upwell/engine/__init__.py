"""Engine: catalog, commit, views, tables over both tiers, queries, flush."""
