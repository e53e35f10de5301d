"""Health and metrics for those who watch the worker."""
