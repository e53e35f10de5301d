"""The embedded servers: Kafka and MongoDB as child processes."""
