"""The run itself: plan, supervisor, worker, and the journal between them."""
