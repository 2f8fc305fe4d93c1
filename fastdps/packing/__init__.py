"""Packing: from a source of samples to a shard set, with many processes and the same bytes whatever their number.

source.items() -- plan.py --> shards of items -- fragment.py, in workers --> tar fragments -- writer.py --> files

Who the workers are is said by an executor (`executor.py`), which shards they pack by a share (`options.py`).
"""
