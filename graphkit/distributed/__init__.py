"""Tables whose rows are spread over the ranks of a run: embedding, exchange of rows, planner."""
