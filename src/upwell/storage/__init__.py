"""Storage: hot stores and cold segments, in the domain's values."""
