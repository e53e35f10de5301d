"""Kafka outside the worker's own consumer: topics, offsets, records read and sent."""
