"""What is measured, one file an evaluator."""
