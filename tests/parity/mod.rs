//! Side by side with diffusers: the same inputs, the same seed, the largest difference.
