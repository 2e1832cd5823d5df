"""Compression methods, one file each: a frozen dataclass of parameters and the rule it adds."""
