"""Each file is one named, complete configuration of a run."""
