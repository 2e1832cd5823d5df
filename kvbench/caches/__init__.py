"""How one layer's keys and values are stored, read and counted."""
