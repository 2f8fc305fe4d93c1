"""Loading: a shard set as batches on the device, with DALI or without; see `loader.py`."""
