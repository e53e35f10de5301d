"""Kafka outside the worker's own consumer: topics, offsets, reading and sending records."""
