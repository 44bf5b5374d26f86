"""Read files of labelled rows: one reader for each format, and a table of records from each reader.

reading.py chooses the reader by suffix: delimited.py (CSV and TSV), json_lines.py, tables.py (Parquet and Excel),
dataset_folders.py. decoding.py turns bytes into text. columns.py detects the columns of text and target, layouts.py and
conversations.py convert chat, Alpaca and exported feedback files, cells.py turns a record into a row, and label_checks.py
notes odd labels. Every error names file, line, value and what was expected; all bad rows are counted.

pipelines/dataset/files.py is the entry.
"""
