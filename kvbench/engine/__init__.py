"""The run itself: plan, supervisor, worker, and the protocol by which tokens pass through caches."""
