"""The worker's web server: the page, the HTTP interface, health and metrics."""
