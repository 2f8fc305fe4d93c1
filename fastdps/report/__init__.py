"""Reports: HTML pages of runs with charts in SVG, and pictures of shard sets and of image differences."""
