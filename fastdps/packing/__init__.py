"""Packing: from a source of samples to a shard set, with many processes and the same bytes whatever their number.

source.items() -- plan.py --> shards of items -- fragment.py, in workers --> tar fragments -- writer.py --> files
"""

from fastdps.packing.options import PackOptions
from fastdps.packing.pack import PackResult, pack

__all__ = ["PackOptions", "PackResult", "pack"]
