"""Signal processing that the losses share: transforms, filter banks, scales, and their hand-written gradients."""
