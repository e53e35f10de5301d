"""Do Kafka, MongoDB and the tables agree?"""
