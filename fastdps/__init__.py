"""fastdps: adapt a perceptual image metric to your notion of similarity, at the speed of the hardware."""
