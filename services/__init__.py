"""The two services: payments and orders. They meet through events alone."""
