"""What evaluators work out of their records, where it is too much for one file: pure, and without torch."""
