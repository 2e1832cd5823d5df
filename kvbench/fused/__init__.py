"""A decode step near the hardware's limit: Triton kernels, their plain forms, and the captured step they make up."""
