"""Networks that break between Kafka, MongoDB and workers, and a Kafka of three brokers (`make test-network`)."""
