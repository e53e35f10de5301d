"""`verify`: compares Kafka, MongoDB and the tables."""
