"""Faust agents that get batches instead of events, and tables that count every event exactly once."""
