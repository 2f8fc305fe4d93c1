"""Shard sets: the format, the images in it, where sets are stored, and the cache of remote shards."""
