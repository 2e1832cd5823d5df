"""What touches tensors while measuring: how tokens pass through caches, scores, clocks, the audit and its proofs."""
