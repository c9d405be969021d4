"""Clients and topics of Kafka; every use of a private part of kafka-python is here."""
