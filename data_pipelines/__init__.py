"""Everything that makes a dataset on disk."""
