"""Whatever a server says, the answer is a value or an error for the user."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ggtune.errors import GgtuneError
from ggtune.ollama.manifest import Manifest
from ggtune.ollama.registry.headers import parse_challenges, parse_url
from ggtune.ollama.registry.reference import Reference
from ggtune.ollama.registry.retry import retry_after_s

CHARACTERS = st.text(alphabet=st.sampled_from('Bearer realm=",\\ \t/:@[]%#?.-_0123456789axé\udcff\x00'))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KEYS = ("schemaVersion", "mediaType", "config", "layers", "digest", "size")


@given(st.lists(CHARACTERS, max_size=3))
def test_challenges(headers: list[str]) -> None:
    for parameters in parse_challenges(headers).values():
        parse_url(parameters.get("realm", ""))


@given(CHARACTERS | st.dates().map(lambda day: f"Fri, {day.day} Jan {day.year}{day.month:09} 00:00:00 GMT"))
def test_retry_after(header: str) -> None:
    seconds = retry_after_s(header)
    assert seconds >= 0
    assert not math.isnan(seconds)


@pytest.mark.parametrize(
    "header", ["Fri, 01 Jan 99999999999 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 +9999", "9" * 9999]
)
def test_retry_after_far_away(header: str) -> None:
    assert retry_after_s(header) >= 0


@given(CHARACTERS)
def test_references(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except GgtuneError:
        return
    parse_url(f"https://{reference.api_host}/v2/{reference.repository}/")


@settings(max_examples=100)
@given(
    st.dictionaries(st.sampled_from(KEYS), VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES))
    | st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES))
    | VALUES
)
def test_manifests(value: Any) -> None:
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:" + "0" * 64, "size": 1}
    for content in (
        value,
        {"schemaVersion": 2, "config": layer, "layers": value},
        {"schemaVersion": 2, "config": value},
    ):
        with pytest.raises(GgtuneError):
            Manifest.parse(json.dumps(content).encode(), "the test")
