"""Shards -> batches -> objective -> the one loop -> checkpoint -> export."""
