"""The page on which people give judgements: images, triplets, answers, and the metric that learns from them."""
