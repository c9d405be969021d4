"""The engine's tables in a service's database: definition, migrations, partitions, sequences."""
