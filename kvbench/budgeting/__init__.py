"""Solving for equal bytes: what a method stores, reckoned or weighed, and the search for the setting that meets a budget."""
