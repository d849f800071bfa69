"""Dataset -> frozen encoders -> shards."""
