"""SQL: text → tree → bound Statement. The engine never sees SQL text but for the query itself."""
