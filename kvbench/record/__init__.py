"""The journal's words and their one fold: events, state, and the rows, tables and result that are read of it."""
