"""CSV and TSV as people have them: delimiters, quotes, ragged rows, headers, line ends, bytes that are no UTF-8."""

import gzip
from pathlib import Path

import pytest

from pipelines.dataset.files import BadFile, Columns, FileRow, read_file

GOOD = [FileRow("hi, all", "a"), FileRow("bye", "b")]


def wrong(path: Path, content: str | bytes, name: str = "a.csv") -> str:
    """What reading says of a bad file, below its path: one line."""
    (path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadFile) as caught:
        read_file(path / name, "classification")
    said = str(caught.value)
    assert said.startswith(f"{path / name}: ")
    assert "\n" not in said
    return said.removeprefix(f"{path / name}: ")


@pytest.mark.parametrize(
    "content",
    [
        'text,label\n"hi, all",a\nbye,b\n',
        'text,label\r\n"hi, all",a\r\nbye,b',
        'text,label\r"hi, all",a\rbye,b\r',
        "text;label\nhi, all;a\nbye;b\n",
        "text\tlabel\nhi, all\ta\nbye\tb\n",
        "text|label\nhi, all|a\nbye|b\n",
        'sep=,\ntext,label\n"hi, all",a\nbye,b\n',
        '"sep=;"\r\ntext;label\r\nhi, all;a\r\nbye;b\r\n',
        "sep=\t\ntext\tlabel\nhi, all\ta\nbye\tb\n",
        '\n\ntext,label\n\n"hi, all",a\n,\nbye,b\n,\n\n',
        'text,label,,\n"hi, all",a,,\nbye,b,,\n,,,\n',
        'text,label\n"hi, all",a,,\nbye,b\n',
        ',text,label\n0,"hi, all",a\n1,bye,b\n',
        'Unnamed: 0,text,label\n0,"hi, all",a\n1,bye,b\n',
        'text,label\n"hi, all",a\ntext,label\nbye,b\n',
        ' Text ,LABEL\n"hi, all",a\nbye,b\n',
        '"text", "label"\n"hi, all", "a"\nbye, "b"\n',
        'text,label\n"hi, all",a\n\ufefftext,label\nbye,b\n',
        '"text","label"\n"hi, all","a"\n"bye","b"\n',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_what_is_common_is_read(tmp_path: Path, content: str, encoding: str) -> None:
    (tmp_path / "a.csv").write_bytes(content.encode(encoding))
    assert read_file(tmp_path / "a.csv", "classification").rows == GOOD


def test_quotes_breaks_and_stray_controls_inside_cells_are_kept(tmp_path: Path) -> None:
    cells = 'text,label,channel\n"he said ""no""\nand left",a,x\nsay 5" to it,b,\n,,\nnul\0 here,"b ",z\n'
    (tmp_path / "a.csv").write_text(cells, newline="", encoding="utf-8")
    assert read_file(tmp_path / "a.csv", "classification").rows == [
        FileRow('he said "no"\nand left', "a", {"channel": "x"}),
        FileRow('say 5" to it', "b"),
        FileRow("nul\0 here", "b", {"channel": "z"}),
    ]


def test_a_cell_of_a_million_characters_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\n{'x' * 1_000_000},a\nb,b\n", encoding="utf-8")
    assert len(read_file(tmp_path / "a.csv", "classification").rows[0].text) == 1_000_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no rows"),
        ("\n \n", "no rows"),
        ("\ufeff", "no rows"),
        ("text,label\n", "no rows"),
        ("text,label\n,\n\n", "no rows"),
        ("text,label\nhi,a\nbye\n", "line 3: 1 cell, the header has 2"),
        ("text,label\nhi,a,b\nbye,b\n", "line 2: 3 cells, the header has 2: 'b' is too many"),
        ("text,label\nhi, all,a\n", "line 2: 3 cells, the header has 2: 'a' is too many"),
        ("text;label\nhi;a;b\n", "line 2: 3 cells, the header has 2: 'b' is too many"),
        ("text,label,\nhi,a,b\n", "line 2: 3 cells, the header has 2: 'b' is too many"),
        ("text,label\n,a\nx,\nhi,a\n", "2 rows cannot be read: line 2: text is empty; line 3: label is empty"),
        ('text,label\n"two\nlines",\n', "line 2: label is empty"),
        ('text,label\n"two\nlines",a\nx,\n', "line 4: label is empty"),
        ("text,label,label\nhi,a,b\n", "line 1: column 'label' appears twice in the header: rename or remove one of them"),
        ("text,label,x,x\nhi,a,1,2\n", "line 1: column 'x' appears twice in the header: rename or remove one of them"),
        ("text,label, label \nhi,a,b\n", "line 1: column 'label' appears twice in the header: rename or remove one of them"),
        ("text,label,Label\nhi,a,b\n", "columns 'label' and 'Label' differ only by case or space: name it with --label-column "
         "(dataset.label_column)"),
        ('text,label\n"no" I said,a\n', "line 2: text follows the closing quote of a cell: double the quotes "
         "inside a quoted cell"),
        ('text,label\nhi,a\n"open,a\nbye,b\n', "line 3: a quote opens here and is not closed up to line 4: "
         "close it, or remove it"),
        ('text,label\nhi,a\nhi,"a\nbye,b\n', "line 3: a quote opens here and is not closed up to line 4: "
         "close it, or remove it"),
        ('text\tlabel\nhi\ta\n"open\ta\nbye\tb\n', "line 3: a quote opens here and is not closed up to line 4: "
         "close it, or remove it"),
        ('text,label\nhi,a\n"open,a\nbye,b\nsee 5",b\nhi,b\n', "line 3: a quote opens here and swallows rows up to line 5: "
         "close it, or remove it"),
        ('text,label\nx,"a\nhi,a\n"open,b\n', "2 rows cannot be read: line 2: a quote opens here and is not closed up to line "
         "4: close it, or remove it; line 4: a quote opens here and is not closed up to line 4: close it, or remove it"),
        ("hello,a\nbye,b\n", "no column 'text' and no column 'label'; it has hello, a: name it with --text-column and "
         "--label-column, or give the file a header"),
        ("text,labels\nhi,a\n", "no column 'label'; it has text, labels: 'labels' is the column of --task multilabel; or name "
         "one with --label-column"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_refused_by_its_line(tmp_path: Path, content: str, said: str) -> None:
    assert wrong(tmp_path, content) == said


def test_all_bad_rows_are_counted_and_five_are_listed(tmp_path: Path) -> None:
    said = wrong(tmp_path, "text,label\n" + "hi,a\nx,\n" * 7)
    assert said.startswith("7 rows cannot be read: line 3: label is empty; line 5: ")
    assert said.endswith("line 11: label is empty; and 2 more")


def test_two_open_quotes_are_named_by_the_lines_on_which_they_open(tmp_path: Path) -> None:
    rows = [f"text {n},{'ab'[n % 2]}" for n in range(40)]
    rows[10], rows[30] = '"open,a', '"open again,b'
    said = wrong(tmp_path, "\n".join(["text,label", *rows]))
    assert said.startswith("2 rows cannot be read: line 12: a quote opens here")
    assert "; line 32: a quote opens here" in said


@pytest.mark.parametrize(
    "content",
    [
        'label,text\na,"Dear all,\nsee, or not"\nb,bye\n',
        'id,label,text\n1,a,"Dear all,\nsee, or, not"\n2,b,bye\n',
        'text,label\n"Dear all,\nyes, but no",a\nbye,b\nyes,"a"\n',
        'text,label\n"see\nb",a\nbye,b\n',
    ],
)
def test_a_cell_that_spans_lines_is_no_open_quote(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    rows = read_file(tmp_path / "a.csv", "classification").rows
    assert [row.label for row in rows[:2]] == ["a", "b"]
    assert "\n" in rows[0].text


@pytest.mark.parametrize(
    "content", ['label,text\na,"open\nb,see 5"\nb,x\n', 'label,text\na,hi\na,"open\nb,y\nb,see 5"\nb,x\n']
)
def test_a_quote_that_opens_in_the_last_column_swallows_nothing_silently(tmp_path: Path, content: str) -> None:
    assert "a quote opens here and swallows rows up to line" in wrong(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\nok,a\nKärtchen – 5 €,a\n".encode("cp1252"), "line 3: byte 0xE4 is not UTF-8 (in Windows-1252 it would be "
         "'ä'); 1 row of this kind (line 3): save the file as UTF-8 (Excel: 'CSV UTF-8')"),
        ("text,label\nhi,a\n".encode("utf-16-le"), "looks like UTF-16 without a byte-order mark: save it as UTF-8"),
        ("text,label\nhi,a\n".encode("utf-16-be"), "looks like UTF-16 without a byte-order mark: save it as UTF-8"),
        ("text,label\nhi,a\n".encode("utf-32-le"), "looks like UTF-32 without a byte-order mark: save it as UTF-8"),
        ("text,label\nhi,a\n".encode("utf-16")[:-1], "has the byte-order mark of UTF-16, but its last character is cut off: "
         "save it as UTF-8"),
        (gzip.compress(b"text,label\nhi,a\n", mtime=0), "holds gzip-compressed data: decompress it first"),
        (b"PK\x03\x04xx", "holds a ZIP archive or a spreadsheet: unpack it, or name it .xlsx"),
        (b"PAR1xx", "holds a Parquet file: name it .parquet"),
        (bytes(range(256)) * 4, "line 2: byte 0x80 is not UTF-8: this is binary data, not text"),
        (b"text,label\n" + b"\x01\x02\x00\x03" * 9, "holds binary data, not text"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_text_of_ours_are_refused_with_a_hint(tmp_path: Path, content: bytes, said: str) -> None:
    assert wrong(tmp_path, content) == said


@pytest.mark.parametrize(("name", "said"), [("a.txt", "not '.txt'"), ("a", "not ''"), ("a.xls", "not '.xls'")])
def test_an_unknown_format_is_refused_with_what_is_read(tmp_path: Path, name: str, said: str) -> None:
    expected = "expected .csv, .tsv, .jsonl, .json, .parquet, .xlsx or a dataset folder, "
    assert wrong(tmp_path, "text,label\nhi,a\n", name) == expected + said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match=r"none\.csv: No such file or directory"):
        read_file(tmp_path / "none.csv", "classification")


@pytest.mark.parametrize(
    ("header", "columns", "read"),
    [
        ("text,category", Columns(), ("text", "category")),
        ("Sentence,Intent", Columns(), ("Sentence", "Intent")),
        ("review,sentiment", Columns(), ("review", "sentiment")),
        ("query,target", Columns(), ("query", "target")),
        ("body,kind", Columns("body", "kind"), ("body", "kind")),
        ("body,kind", Columns("Body", " KIND"), ("body", "kind")),
        ("label,text", Columns("label", "text"), ("label", "text")),
        ("text,Label", Columns(None, "Label"), ("text", "Label")),
        ("te\u200bxt,label", Columns(), ("te\u200bxt", "label")),
    ],
)
def test_columns_are_found_by_option_or_by_name(
    tmp_path: Path, header: str, columns: Columns, read: tuple[str, str]
) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\nhi,a\nbye,b\n", encoding="utf-8")
    found = read_file(tmp_path / "a.csv", "classification", columns)
    assert (found.text_column, found.target_column) == read
    assert found.rows == [FileRow("hi", "a"), FileRow("bye", "b")]


@pytest.mark.parametrize(
    ("header", "columns", "said"),
    [
        ("text,category,class", Columns(), "no column 'label', and 'category' and 'class' could each be it: name it with "
         "--label-column"),
        ("review,message,label", Columns(), "no column 'text', and 'review' and 'message' could each be it"),
        ("text,label,x", Columns(None, "kind"), "no column 'kind', which dataset.label_column names; it has text, label, x"),
        ("text,topic,x", Columns(), "no column 'label'; it has text, topic, x: name it with --label-column"),
    ],
)  # fmt: skip
def test_between_two_candidates_nothing_is_guessed(tmp_path: Path, header: str, columns: Columns, said: str) -> None:
    (tmp_path / "a.csv").write_text(f"{header}\nhi,a,b\nbye,b,c\n", encoding="utf-8")
    with pytest.raises(BadFile) as caught:
        read_file(tmp_path / "a.csv", "classification", columns)
    assert said in str(caught.value)


def test_a_column_without_a_name_and_a_repeated_header_are_noted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",text,label\n0,hi,a\n,text,label\n1,bye,b\n", encoding="utf-8")
    assert read_file(tmp_path / "a.csv", "classification").notes == [
        "column 1 has no name and is left out",
        "line 3 repeats the header: 1 row of this kind left out",
    ]
