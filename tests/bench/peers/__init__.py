"""Programs of others that do the same kind of job."""
