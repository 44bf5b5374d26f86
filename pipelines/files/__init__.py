"""Files of labelled rows: each format a reader, each reader a table of records.

reading.py chooses the reader by name: delimited.py (CSV and TSV), json_lines.py, tables.py (Parquet and Excel),
dataset_folders.py. decoding.py turns bytes into text or says what they are. columns.py finds text and target,
layouts.py and conversations.py read chat, Alpaca and exported feedback, cells.py turns a record into a row,
label_checks.py says what looks odd. Every error names file, line, what stands there and what was expected; all bad
rows are counted.

pipelines/dataset/files.py is the entry.
"""
