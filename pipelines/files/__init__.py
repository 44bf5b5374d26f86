"""Files of labelled rows: each format a reader, each reader a table of records."""
