"""From the store to tables, statistics and the report."""
