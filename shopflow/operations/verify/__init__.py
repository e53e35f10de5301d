"""`verify`: do Kafka, MongoDB and the tables agree?"""
