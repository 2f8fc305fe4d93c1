"""Loading: batches of a shard set on the device, with or without DALI; see `fastdps.loading.loader`."""
