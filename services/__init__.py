"""The two services, payments and orders. They exchange only events."""
