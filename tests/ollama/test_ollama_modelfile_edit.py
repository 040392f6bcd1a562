import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ggtune.errors import GgtuneError
from ggtune.ollama.modelfile import Modelfile
from ggtune.ollama.modelfile_edit import extend, is_signed, read_modelfile, signed

WANTED = Modelfile(
    "./new.gguf",
    adapter="./a.gguf",
    template="T{{ .Prompt }}",
    system="Ours.",
    license=["mit"],
    parameters={"stop": ["[INST]", "END"], "num_ctx": 64},
    messages=[("user", "Hi")],
)


def test_only_an_unchanged_file_of_ggtune_is_known():
    text = signed("FROM x\nSYSTEM ü\n")
    assert is_signed(text)
    assert re.match(r"# Written by ggtune \d\S*; sha256:[0-9a-f]{64}\nFROM x\n", text)
    assert not is_signed(text.replace("FROM x", "FROM y"))
    assert not is_signed(text + "# mine\n")
    assert not is_signed("FROM x\n")
    assert not is_signed("# mine\n" + text)


def test_what_the_user_wrote_stays_where_it_is():
    text = (
        "# My teacher.\n\nfrom old.gguf\n# cooler\nPARAMETER temperature 0.2\r\nPARAMETER stop END\n"
        'SYSTEM """Mine,\n# in two lines."""\nLICENSE one\nLICENSE two\n# the end'
    )
    extended = extend(text, WANTED, set())
    assert extended.text == (
        "# My teacher.\n\nFROM ./new.gguf\nADAPTER ./a.gguf\nTEMPLATE T{{ .Prompt }}\n"
        "# cooler\nPARAMETER temperature 0.2\r\nPARAMETER stop END\n"
        'SYSTEM """Mine,\n# in two lines."""\nLICENSE one\nLICENSE two\nMESSAGE user Hi\n# the end'
    ).replace("stop END\n", 'stop END\nPARAMETER stop "[INST]"\nPARAMETER num_ctx 64\n')
    assert extended.what_stays == "SYSTEM; LICENSE; PARAMETER temperature, stop; 3 comments"


def test_what_is_given_is_set_once():
    text = (
        "PARAMETER num_ctx 1\nFROM o\nADAPTER b\n"
        "SYSTEM a\nPARAMETER num_ctx 2\nLICENSE one\nMESSAGE user x\nLICENSE two\nMESSAGE assistant y\n"
    )
    extended = extend(text, WANTED, {"SYSTEM", "LICENSE", "MESSAGE", "PARAMETER num_ctx", "PARAMETER stop"})
    assert extended.text == (
        "PARAMETER num_ctx 64\nFROM ./new.gguf\nADAPTER ./a.gguf\nTEMPLATE T{{ .Prompt }}\nSYSTEM Ours.\n"
        'PARAMETER stop "[INST]"\nPARAMETER stop "END"\nLICENSE mit\nMESSAGE user Hi\n'
    )
    assert extended.what_stays == ""


def test_what_is_given_as_none_goes():
    extended = extend("FROM o\nADAPTER b\nSYSTEM a\n# end", Modelfile("n"), {"SYSTEM"})
    assert extended.text == "FROM n\n# end"


def test_a_changed_file_of_ggtune_loses_its_mark():
    text = signed("FROM o\nSYSTEM a\n") + "PARAMETER top_k 3"
    extended = extend(text, Modelfile("n", parameters={"seed": 1}), set())
    assert extended.text == "FROM n\nSYSTEM a\nPARAMETER top_k 3\nPARAMETER seed 1\n"
    assert extended.n_comments == 0


TEXTS = st.sampled_from(["a", "b c", "two\nlines", ' "x"'])
MODELFILES = st.builds(
    Modelfile,
    model=st.sampled_from(["./m", "n"]),
    adapter=st.none() | st.just("./a"),
    template=st.none() | TEXTS,
    system=st.none() | TEXTS,
    license=st.lists(TEXTS, max_size=2),
    parameters=st.fixed_dictionaries(
        {}, optional={"stop": st.lists(TEXTS, min_size=1, max_size=2, unique=True), "seed": st.integers(0, 3)}
    ),
    messages=st.lists(st.tuples(st.sampled_from(["user", "assistant"]), TEXTS), max_size=2),
)
WORDS = {"TEMPLATE": "template", "SYSTEM": "system", "LICENSE": "license", "MESSAGE": "messages"}
GIVEN = st.sets(st.sampled_from([*WORDS, "PARAMETER seed", "PARAMETER stop"]))


@given(old=MODELFILES, wanted=MODELFILES, said=GIVEN, end=st.sampled_from(["", "# end"]))
def test_the_result_says_what_it_should(old, wanted, said, end):
    body = "".join(f"# {i}\n{line}" for i, line in enumerate(str(old).splitlines(keepends=True)) if '"' not in str(old))
    text = (body or str(old)) + end
    result = Modelfile.parse(extend(text, wanted, said).text)
    assert (result.model, result.adapter) == (wanted.model, wanted.adapter)
    for word, name in WORDS.items():
        before, new = getattr(old, name), getattr(wanted, name)
        assert getattr(result, name) == (new if word in said or not before else before)
    seeds = [each.parameters.get("seed") for each in (old, wanted)]
    assert result.parameters.get("seed") == (seeds[1] if "PARAMETER seed" in said or seeds[0] is None else seeds[0])
    stops = [list(each.parameters.get("stop", [])) for each in (old, wanted)]
    assert sorted(result.parameters.get("stop", [])) == sorted({*stops[0], *stops[1]})
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert [line for line in extend(text, wanted, said).text.splitlines() if line.startswith("#")] == comments


def test_no_modelfile(tmp_path):
    with pytest.raises(GgtuneError, match="x, line 2"):
        extend("FROM a\nWHAT b\n", WANTED, set(), path="x")
    (tmp_path / "latin").write_bytes(b"FROM \xe4\n")
    with pytest.raises(GgtuneError, match="latin: is not UTF-8"):
        read_modelfile(tmp_path / "latin")
    with pytest.raises(GgtuneError, match="none: can't be read"):
        read_modelfile(tmp_path / "none")
