import pytest

from ggtune.errors import GgtuneError
from ggtune.ollama.names import ModelName


@pytest.mark.parametrize(
    ("text", "path", "short"),
    [
        ("chem", "registry.ollama.ai/library/chem/latest", "chem"),
        ("chem:v1.5", "registry.ollama.ai/library/chem/v1.5", "chem:v1.5"),
        ("me/chem", "registry.ollama.ai/me/chem/latest", "me/chem"),
        ("127.0.0.1:5000/me/chem:t", "127.0.0.1:5000/me/chem/t", "127.0.0.1:5000/me/chem:t"),
        ("registry.ollama.ai/library/chem:latest", "registry.ollama.ai/library/chem/latest", "chem"),
    ],
)
def test_defaults_and_short_form(text, path, short):
    name = ModelName.parse(text)
    assert str(name.manifest_path()) == path
    assert str(name) == short
    assert ModelName.parse(short) == name


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "model"),
        ("-chem", "model"),
        ("../chem", "namespace"),
        ("..", "model"),
        ("che m", "model"),
        ("chem\n", "model"),
        ("chem:", "tag"),
        ("chem:a:b", "tag"),
        ("chem:.x", "tag"),
        ("a.b/chem", "namespace"),
        ("x" * 81, "model"),
        ("h/" + "n" * 81 + "/m", "namespace"),
        ("h" * 351 + "/n/m", "host"),
        ("a/b/c/d", "host"),
        ("http://h/n/m", "host"),
        ("a//m", "namespace"),
    ],
)
def test_bad_names_say_which_part(text, part):
    with pytest.raises(GgtuneError, match=f"its {part} "):
        ModelName.parse(text)


def test_leading_slash():
    with pytest.raises(GgtuneError, match="slash"):
        ModelName.parse("/chem")


def test_host_without_namespace_says_what_to_write():
    with pytest.raises(GgtuneError, match=r"127\.0\.0\.1:5000/NAMESPACE/m:t"):
        ModelName.parse("127.0.0.1:5000/m:t")


def test_longest_parts():
    assert ModelName.parse("h" * 350 + "/" + "n" * 80 + "/" + "m" * 80 + ":" + "t" * 80).tag == "t" * 80
