import json
from pathlib import Path

import gguf_samples as samples
import pytest

from ggtune.data.templates import TEMPLATES
from ggtune.errors import GgtuneError
from ggtune.ollama.modelfile import Modelfile
from ggtune.ollama.package import package_model
from ggtune.ollama.templates import go_template

LLAMA2 = samples.JINJA["llama2"][0]
UNKNOWN = samples.JINJA["chatml with other tags"][0]


def read_modelfile(folder):
    return Modelfile.parse((folder / "Modelfile").read_bytes().decode())


def layer(result, kind):
    for found in result.stored.layers:
        if found.media_type.endswith(kind):
            return (result.store / "blobs" / found.digest.replace(":", "-")).read_text()
    return None


def test_modelfile_and_store_say_the_same(tmp_path):
    model = samples.write_model(tmp_path / "merged.gguf", chat_template=LLAMA2)
    result = package_model(
        model, "chem", out_dir=tmp_path / "out", store=tmp_path / "store", system="Teach.", params={"num_ctx": 64}
    )
    modelfile = read_modelfile(tmp_path / "out")
    assert (tmp_path / "out" / modelfile.model).samefile(model)
    assert modelfile.model == "../merged.gguf"
    assert modelfile.template == layer(result, "template") == go_template(TEMPLATES["llama2"], "</s>").text
    assert modelfile.system == layer(result, "system") == "Teach."
    stops = ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"]
    assert modelfile.parameters == json.loads(layer(result, "params")) == {"num_ctx": 64, "stop": stops}
    assert result.template == "llama2"
    assert "ollama run chem" in str(result)
    assert f"ollama create chem -f {result.modelfile}" in str(result)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Modelfile"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_survives_the_modelfile(tmp_path, name):
    model = samples.write_model(tmp_path / "m.gguf")
    package_model(model, "m", out_dir=tmp_path, template=name, params={"stop": ["END"]})
    modelfile = read_modelfile(tmp_path)
    expected = go_template(TEMPLATES[name], "</s>")
    assert modelfile.model == "./m.gguf"
    assert modelfile.template == expected.text
    assert modelfile.parameters == {"stop": [*expected.stops, "END"]}


def test_metadata_of_the_training_are_the_defaults(tmp_path):
    model = samples.write_model(
        tmp_path / "m.gguf", chat_template=LLAMA2, ggtune__template="chatml", ggtune__system="Trained."
    )
    result = package_model(model, "m", out_dir=tmp_path)
    assert (result.template, result.system) == ("chatml", "Trained.")
    result = package_model(model, "m", out_dir=tmp_path, template="model", system="")
    assert (result.template, result.system) == ("llama2", None)
    assert read_modelfile(tmp_path).system is None


def test_unknown_chat_template_is_left_to_the_file_and_said(tmp_path):
    model = samples.write_model(tmp_path / "m.gguf", chat_template=UNKNOWN)
    result = package_model(model, "m", out_dir=tmp_path, store=tmp_path / "s", system="Hi.")
    assert result.template is None
    assert layer(result, "template") is None
    assert read_modelfile(tmp_path).template is None
    assert "No TEMPLATE was written" in str(result)


def test_no_chat_template_is_plain_and_said(tmp_path):
    result = package_model(samples.write_model(tmp_path / "m.gguf"), "m", out_dir=tmp_path)
    assert result.template == "plain"
    assert "no chat template" in str(result)


def test_lost_characters_and_capitals_are_said(tmp_path):
    model = samples.write_model(tmp_path / "m.gguf", chat_template=LLAMA2)
    said = str(package_model(model, "Chem", out_dir=tmp_path, system="a\u00a0b"))
    assert "U+00A0" in said
    assert "lower case" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": "chatlm"}, 'no template "chatlm"'),
        ({"template": "model"}, "no chat template of its own"),
        ({"template": "gemma", "system": "S"}, "no place for a system text"),
        ({"name": "a b"}, "not a model name"),
        ({"params": {"heat": 1}}, 'no parameter "heat"'),
        ({"template": "llama2", "system": 'x"""'}, "three quotation marks"),
        ({"adapters": [(Path("none.gguf"), 1.0)]}, "no such file"),
        ({"said": [("robot", "Hi.")]}, 'the role "robot"'),
        ({"modelfile": Path("none")}, "none: can't be read"),
    ],
)
def test_bad_input_leaves_nothing(tmp_path, arguments, message):
    model = samples.write_model(tmp_path / "m.gguf")
    name = arguments.pop("name", "m")
    with pytest.raises(GgtuneError, match=message):
        package_model(model, name, out_dir=tmp_path / "out", store=tmp_path / "store", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_nowhere_to_write(tmp_path):
    with pytest.raises(GgtuneError, match="Nothing to write"):
        package_model(samples.write_model(tmp_path / "m.gguf"), "m")


def test_folder_that_is_a_file(tmp_path):
    model = samples.write_model(tmp_path / "m.gguf")
    with pytest.raises(GgtuneError, match=r"can't write to the folder .*m\.gguf"):
        package_model(model, "m", out_dir=model)


def test_failing_store_leaves_no_modelfile(tmp_path):
    model = samples.write_model(tmp_path / "m.gguf")
    (tmp_path / "store").write_text("a file")
    with pytest.raises(GgtuneError, match="this Ollama store"):
        package_model(model, "m", out_dir=tmp_path / "out", store=tmp_path / "store")
    assert not (tmp_path / "out").exists()
