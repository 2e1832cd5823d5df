"""Triton kernels; imported inside functions only, since Triton may be missing."""
