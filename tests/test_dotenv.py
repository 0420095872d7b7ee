"""parse_dotenv as tables: what a .env file says, and what it cannot say."""
import pytest


def parsed(bootstrap, text):
    entries, complaints = bootstrap.parse_dotenv(text)
    return ([(entry.name, entry.value) for entry in entries],
            [complaint.line for complaint in complaints])


@pytest.mark.parametrize("line, value", [
    pytest.param("A=b", "b", id="plain"),
    pytest.param("A=", "", id="empty"),
    pytest.param("A = b ", "b", id="spaces around ="),
    pytest.param("  A=b", "b", id="indented"),
    pytest.param("\tA\t=\tb", "b", id="tabs"),
    pytest.param("export A=b", "b", id="export"),
    pytest.param("export\tA=b", "b", id="export and a tab"),
    pytest.param("A=b c", "b c", id="inner space"),
    pytest.param("A=a#b", "a#b", id="# without white space"),
    pytest.param("A=#b", "#b", id="# right behind ="),
    pytest.param("A=a #b", "a", id="comment"),
    pytest.param("A=a\t#b", "a", id="comment behind a tab"),
    pytest.param("A= #b", "", id="only a comment"),
    pytest.param("A=a#b #c", "a#b", id="both kinds of #"),
    pytest.param("A=b=c", "b=c", id="= in the value"),
    pytest.param("A=$HOME `id` $(id)", "$HOME `id` $(id)", id="nothing is expanded"),
    pytest.param("A=it's", "it's", id="quote inside"),
    pytest.param(r"A=a\nb", r"a\nb", id="no escapes without quotes"),
    pytest.param("A='b'", "b", id="single quotes"),
    pytest.param("A=' b '", " b ", id="single quotes keep spaces"),
    pytest.param(r"A='a\n\'", r"a\n" + "\\", id="single quotes are literal"),
    pytest.param("A='b' # c", "b", id="comment behind a quote"),
    pytest.param("A='b'#c", "b", id="comment right behind a quote"),
    pytest.param("A='a\nb'", "a\nb", id="single quotes span lines"),
    pytest.param('A="b"', "b", id="double quotes"),
    pytest.param('A=""', "", id="empty quotes"),
    pytest.param('A="a #b"', "a #b", id="# in quotes"),
    pytest.param('A="a\nb"', "a\nb", id="double quotes span lines"),
    pytest.param(r'A="a\nb"', "a\nb", id="newline escape"),
    pytest.param(r'A="a\tb"', "a\tb", id="tab escape"),
    pytest.param(r'A="a\"b"', 'a"b', id="escaped quote"),
    pytest.param(r'A="a\\"', "a\\", id="escaped backslash at the end"),
    pytest.param(r'A="a\\nb"', r"a\nb", id="escaped backslash before n"),
    pytest.param(r'A="\x"', r"\x", id="an unknown escape stays"),
    pytest.param("A=\u00e4\u20ac", "\u00e4\u20ac", id="not ASCII"),
])
def test_a_line_assigns(bootstrap, line, value):
    for text in (line, line + "\n", "\ufeff" + line, line.replace("\n", "\r\n") + "\r\n"):
        assert parsed(bootstrap, text) == ([("A", value)], [])


@pytest.mark.parametrize("line", [
    pytest.param("", id="empty"),
    pytest.param("   \t", id="blank"),
    pytest.param("# A=b", id="comment"),
    pytest.param("   # A=b", id="indented comment"),
    pytest.param("#", id="bare #"),
])
def test_a_line_says_nothing(bootstrap, line):
    assert parsed(bootstrap, line + "\nZ=1") == ([("Z", "1")], [])


@pytest.mark.parametrize("line", [
    pytest.param("A", id="bare name"),
    pytest.param("export A", id="bare name with export"),
    pytest.param("=b", id="no name"),
    pytest.param("1A=b", id="name starts with a digit"),
    pytest.param("A-B=c", id="name with a dash"),
    pytest.param("A B=c", id="two names"),
    pytest.param("\u00c4=b", id="name that is not ASCII"),
    pytest.param("A='b", id="unclosed single quote"),
    pytest.param('A="b', id="unclosed double quote"),
    pytest.param(r'A="b\"', id="only an escaped quote"),
    pytest.param("A='b' c", id="text behind the quote"),
    pytest.param("A='b'c", id="text right behind the quote"),
    pytest.param("A=\udcff", id="not UTF-8"),
    pytest.param("A=b\0c", id="NUL"),
    pytest.param("A='\udcff'", id="not UTF-8 in quotes"),
])
def test_a_bad_line_spoils_itself_alone(bootstrap, line):
    before, after = "Y=1\n", "\nZ=2\n"
    assert parsed(bootstrap, before + line + after) == ([("Y", "1"), ("Z", "2")], [2])


@pytest.mark.parametrize("line, named", [
    ("A='s3cret", "A"), ("A=\udcffs3cret", "A"), ("A=s3cret\0", "A"), ("A='x' s3cret", "A"),
    ("s3cret", None), ("export s3cret", None), ("s3-cret=s3cret", None), ("='s3cret", None),
    ("s3cret A=s3cret", None),
])
def test_a_complaint_names_a_valid_name_and_nothing_else(bootstrap, line, named):
    entries, (complaint,) = bootstrap.parse_dotenv(line)
    assert entries == [] and "s3" not in complaint.why
    assert named is None or complaint.why.startswith(named + " ")


def test_every_entry_keeps_the_number_of_its_line(bootstrap):
    entries, complaints = bootstrap.parse_dotenv("A='1\n2'\n\nB=\"x\ny\nz\" # c\nbad\nC=3")
    assert [(entry.name, entry.line) for entry in entries] == [("A", 1), ("B", 4), ("C", 8)]
    assert [complaint.line for complaint in complaints] == [7]


def test_duplicates_are_all_kept_in_order(bootstrap):
    assert parsed(bootstrap, "A=1\nA=2\n") == ([("A", "1"), ("A", "2")], [])


def test_a_megabyte_on_one_line_is_a_value_like_any_other(bootstrap):
    value = "x" * (1 << 20)
    assert parsed(bootstrap, "A=" + value + "\nB='" + value + "'") == (
        [("A", value), ("B", value)], [])


@pytest.mark.parametrize("line", [
    "A='x\n", 'A="x\n', 'A="\\"\n', "A='x' y\n", "A=#", "A= #", " ", "A", "export ", 'A="\\', "'\"",
], ids=repr)
def test_the_steps_grow_with_the_length_and_no_faster(bootstrap, line):
    """A parser that scans the rest again at every line would still be at it tomorrow."""
    bootstrap.parse_dotenv(line * 200000)
