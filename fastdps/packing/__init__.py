"""Packing: turn a source of samples into a shard set. The bytes do not depend on the number of worker processes.

source.items() -- plan.py --> shards of items -- fragment.py, in workers --> tar fragments -- writer.py --> files

An executor (`executor.py`, `on_ray.py`) runs the workers; a `Share` (`options.py`) selects the shards that a run packs.
"""
