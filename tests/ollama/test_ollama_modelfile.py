import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggtune.errors import GgtuneError
from ggtune.ollama.modelfile import Modelfile

EXPRESSIBLE = st.text(st.sampled_from('ab "#\n\r\t{}')).filter(
    lambda text: text and not any(line.rstrip().endswith('"""') for line in re.split("[\r\n]", text))
)


def test_written_form():
    modelfile = Modelfile(
        model="./merged model.gguf",
        template="[INST] {{ .Prompt }} [/INST]{{ .Response }}</s>",
        system="You teach.\nBe short.",
        parameters={"stop": ["[INST]", "[/INST]"], "temperature": 0.5, "num_ctx": 4096, "use_mmap": True},
        messages=[("user", "Hi"), ("assistant", 'Say "hello".\n')],
    )
    assert str(modelfile) == (
        "FROM ./merged model.gguf\n"
        "TEMPLATE [INST] {{ .Prompt }} [/INST]{{ .Response }}</s>\n"
        'SYSTEM "You teach.\nBe short."\n'
        'PARAMETER stop "[INST]"\n'
        'PARAMETER stop "[/INST]"\n'
        "PARAMETER temperature 0.5\n"
        "PARAMETER num_ctx 4096\n"
        "PARAMETER use_mmap true\n"
        "MESSAGE user Hi\n"
        'MESSAGE assistant """Say "hello".\n"""\n'
    )
    assert Modelfile.parse(str(modelfile)) == modelfile


@given(system=EXPRESSIBLE, stop=EXPRESSIBLE, message=EXPRESSIBLE)
def test_every_expressible_text_comes_back(system, stop, message):
    modelfile = Modelfile("m", system=system, parameters={"stop": [stop, "x"]}, messages=[("user", message)])
    assert Modelfile.parse(str(modelfile)) == modelfile


@pytest.mark.parametrize("text", ['a"""', 'a""" \nb', 'say """\nmore'])
def test_text_with_a_line_that_ends_in_three_quotes_is_refused(text):
    with pytest.raises(GgtuneError, match="SYSTEM has three quotation marks"):
        str(Modelfile("m", system=text))


def test_three_quotes_inside_a_line_are_fine():
    modelfile = Modelfile("m", system='a """b""" c\n"d"')
    assert Modelfile.parse(str(modelfile)) == modelfile


def test_lost_characters():
    modelfile = Modelfile("m", system="a\u00a0b\u200dc\ufeff\td\n é", parameters={"stop": ["\u200b"]})
    assert modelfile.lost_characters() == "\u00a0\u200b\u200d\ufeff"
    assert Modelfile("m", system="a b\n\tc é").lost_characters() == ""


def test_parse_foreign_file():
    text = (
        "# a comment\r\nfrom llama3 \r\n\r\nParameter  top_k 40\r\n"
        'PARAMETER stop "# no comment"\r\nSYSTEM """a\r\n# b"""\r\n'
    )
    modelfile = Modelfile.parse(text)
    assert modelfile.model == "llama3"
    assert modelfile.parameters == {"top_k": 40, "stop": ["# no comment"]}
    assert modelfile.system == "a\r\n# b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SYSTEM x\n", "needs a FROM"),
        ("FROM m\nFORM x\n", 'line 2: "FORM"'),
        ("FROM m\nPARAMETER topk 3\n", 'line 2: .*no parameter "topk"'),
        ("FROM m\nPARAMETER top_k many\n", "line 2: .*many"),
        ('FROM m\nSYSTEM """a\nb\n', "line 2: the quotes of SYSTEM"),
        ("FROM m\nMESSAGE robot x\n", "line 2: .*robot"),
        ("FROM m\nADAPTER a\nADAPTER b\n", "line 3: a second ADAPTER"),
        ("FROM\n", "line 1: FROM has no value"),
    ],
)
def test_parse_errors_name_the_line(text, message):
    with pytest.raises(GgtuneError, match=message):
        Modelfile.parse(text)


@pytest.mark.parametrize(
    "parameters",
    [
        {"top": 1},
        {"top_k": 1.5},
        {"top_k": True},
        {"temperature": "hot"},
        {"temperature": float("nan")},
        {"use_mmap": 1},
        {"stop": "x"},
        {"stop": [""]},
    ],
)
def test_bad_parameters(parameters):
    with pytest.raises(GgtuneError, match=next(iter(parameters))):
        str(Modelfile("m", parameters=parameters))


def test_bad_role():
    with pytest.raises(GgtuneError, match="robot"):
        str(Modelfile("m", messages=[("robot", "x")]))
