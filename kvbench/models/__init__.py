"""Loading a model, and saying what it is before and after: where it lies, in what it is written, whether it fits."""
