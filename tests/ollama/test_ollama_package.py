import json
from pathlib import Path

import gguf_samples as samples
import pytest

from ggtune.data.templates import TEMPLATES
from ggtune.errors import GgtuneError
from ggtune.gguf.adapter_file import read_adapter
from ggtune.gguf.io import model_fingerprint
from ggtune.gguf.vocabulary import SpecialTokens
from ggtune.ollama.modelfile import Modelfile
from ggtune.ollama.package import check_packaging, package_model
from ggtune.ollama.templates import ollama_template

LLAMA2 = samples.JINJA["llama2"][0]
UNKNOWN = samples.JINJA["asks in capitals"][0]
TOKENS = SpecialTokens("<s>", "</s>", add_bos=False, ends=("</s>",))  # of the sample model


def read_modelfile(folder):
    return Modelfile.parse((folder / "Modelfile").read_bytes().decode())


def layers(result, kind):
    found = [layer for layer in result.stored.layers if layer.media_type.endswith(f".{kind}")]
    return [(result.store / "blobs" / layer.digest.replace(":", "-")).read_bytes() for layer in found]


def layer(result, kind):
    found = layers(result, kind)
    return found[0].decode() if found else None


def check_same(result):
    """What ``ollama create`` would make of the Modelfile is what the store has."""
    modelfile = read_modelfile(result.modelfile.parent)
    folder = result.modelfile.parent
    assert layers(result, "model") == [(folder / modelfile.model).read_bytes()]
    assert layers(result, "adapter") == ([(folder / modelfile.adapter).read_bytes()] if modelfile.adapter else [])
    assert layer(result, "template") == modelfile.template
    assert layer(result, "system") == modelfile.system
    assert [text.decode() for text in layers(result, "license")] == modelfile.license
    assert json.loads(layer(result, "params") or "{}") == modelfile.parameters
    messages = [{"role": role, "content": text} for role, text in modelfile.messages]
    assert json.loads(layer(result, "messages") or "[]") == messages
    assert (modelfile.renderer, modelfile.parser, modelfile.requires) == (None, None, None)
    assert result.content == modelfile
    return modelfile


def test_modelfile_and_store_say_the_same(tmp_path):
    model = samples.write_model(tmp_path / "merged.gguf", chat_template=LLAMA2)
    result = package_model(
        model, "chem", out_dir=tmp_path / "out", store=tmp_path / "store", system="Teach.", params={"num_ctx": 64}
    )
    modelfile = read_modelfile(tmp_path / "out")
    assert (tmp_path / "out" / modelfile.model).samefile(model)
    assert modelfile.model == "../merged.gguf"
    assert modelfile.template == layer(result, "template")
    assert modelfile.template.startswith("<s>[INST] {{ if $.System }}<<SYS>>\n{{ $.System }}\n<</SYS>>")
    assert modelfile.system == layer(result, "system") == "Teach."
    stops = ["</s>", "[INST]"]
    assert modelfile.parameters == json.loads(layer(result, "params")) == {"num_ctx": 64, "stop": stops}
    assert result.template == "model"
    assert "TEMPLATE was run and gives the training's text" in str(result)
    assert "ollama run chem" in str(result)
    assert f"ollama create chem -f {result.modelfile}" in str(result)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Modelfile"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_survives_the_modelfile(tmp_path, name):
    model = samples.write_model(tmp_path / "m.gguf")
    package_model(model, "m", out_dir=tmp_path, template=name, params={"stop": ["END"]})
    modelfile = read_modelfile(tmp_path)
    expected = ollama_template(TEMPLATES[name], TOKENS)
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
    assert (result.template, result.system) == ("model", None)
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


# -- licences, messages --------------------------------------------------------------------------------------------


def test_licences_and_messages(tmp_path):
    model = samples.write_model(tmp_path / "m.gguf", chat_template=LLAMA2, general__license="apache-2.0")
    result = package_model(
        model,
        "m",
        out_dir=tmp_path,
        store=tmp_path / "s",
        license=["Do as\nyou like.\n", "Or not."],
        said=[("user", "Hi?"), ("assistant", 'Yes,\n"hi".')],
        params={"temperature": 0.1, "use_mmap": True},
    )
    modelfile = check_same(result)
    assert modelfile.license == ["Do as\nyou like.\n", "Or not."]
    assert modelfile.messages == [("user", "Hi?"), ("assistant", 'Yes,\n"hi".')]
    kinds = [found.media_type.rpartition(".")[2] for found in result.stored.layers]
    assert kinds == ["model", "template", "license", "license", "params", "messages"]


def test_the_licence_of_the_file_is_the_default(tmp_path):
    keys = {"general__license": "other", "general__license__name": "Llama", "general__license__link": "l.example"}
    model = samples.write_model(tmp_path / "m.gguf", **keys)
    assert check_same(package_model(model, "m", out_dir=tmp_path, store=tmp_path / "s")).license == [
        "other\nLlama\nl.example"
    ]


# -- a Modelfile that is there -------------------------------------------------------------------------------------


def test_own_modelfile_is_replaced(tmp_path):
    model = samples.write_model(tmp_path / "m.gguf", chat_template=LLAMA2)
    package_model(model, "m", out_dir=tmp_path, params={"num_ctx": 64}, system="Old.")
    result = package_model(model, "m", out_dir=tmp_path, store=tmp_path / "s")
    assert "Kept" not in str(result)
    modelfile = check_same(result)
    assert modelfile.system is None
    assert "num_ctx" not in modelfile.parameters


def test_a_users_modelfile_is_extended(tmp_path):
    model = samples.write_model(tmp_path / "m.gguf", chat_template=LLAMA2, ggtune__system="Trained.")
    text = "# mine\nFROM elsewhere\nPARAMETER temperature 0.2\nPARAMETER stop END\nMESSAGE user Hi\nLICENSE free\n"
    (tmp_path / "Modelfile").write_text(text)
    result = package_model(model, "m", out_dir=tmp_path, store=tmp_path / "s", params={"top_k": 3})
    modelfile = check_same(result)
    assert modelfile.model == "./m.gguf"
    assert "[INST]" in modelfile.template
    assert modelfile.system == "Trained."
    assert modelfile.parameters["temperature"] == 0.2
    assert modelfile.parameters["top_k"] == 3
    assert {"END", "[INST]"} <= set(modelfile.parameters["stop"])
    assert modelfile.messages == [("user", "Hi")]
    assert modelfile.license == ["free"]
    assert (tmp_path / "Modelfile").read_text().startswith("# mine\nFROM ./m.gguf\n")
    kept = f"Kept from {tmp_path / 'Modelfile'}: MESSAGE; LICENSE; PARAMETER temperature, stop; 1 comment"
    assert kept in str(result)


def test_an_edited_modelfile_of_ggtune_is_the_users(tmp_path):
    model = samples.write_model(tmp_path / "m.gguf", chat_template=LLAMA2)
    package_model(model, "m", out_dir=tmp_path)
    with (tmp_path / "Modelfile").open("a") as file:
        file.write("PARAMETER temperature 0.7\n")
    for _ in range(2):
        result = package_model(model, "m", out_dir=tmp_path, store=tmp_path / "s")
        assert check_same(result).parameters["temperature"] == 0.7
        assert "Kept from" in str(result)


def test_kept_texts_that_are_not_the_trainings_are_said(tmp_path):
    model = samples.write_model(tmp_path / "m.gguf", chat_template=LLAMA2, ggtune__system="Trained.")
    text = "FROM x\nTEMPLATE Q {{ .System }} {{ .Prompt }}\nSYSTEM Mine.\nADAPTER y\n"
    (tmp_path / "Modelfile").write_text(text)
    result = package_model(model, "m", out_dir=tmp_path, store=tmp_path / "s")
    modelfile = check_same(result)
    assert (modelfile.template, modelfile.system) == ("Q {{ .System }} {{ .Prompt }}", "Mine.")
    assert modelfile.adapter is None
    assert modelfile.parameters == {}  # the stops are those of another template
    for said in (
        "TEMPLATE of",
        "SYSTEM of",
        "ADAPTER of",
        f"FROM of {tmp_path / 'Modelfile'} was x.",
        "Modelfile's own",
    ):
        assert said in str(result)
    given = package_model(model, "m", out_dir=tmp_path, store=tmp_path / "s", template="chatml", system="Given.")
    modelfile = check_same(given)
    assert "<|im_start|>" in modelfile.template
    assert modelfile.system == "Given."
    assert given.template == "chatml"


def test_another_modelfile_to_extend(tmp_path):
    model = samples.write_model(tmp_path / "m.gguf", chat_template=LLAMA2)
    other = tmp_path / "other"
    other.write_text("FROM x\nPARAMETER seed 4\n")
    result = package_model(model, "m", out_dir=tmp_path / "out", store=tmp_path / "s", modelfile=other)
    assert check_same(result).parameters["seed"] == 4
    assert other.read_text() == "FROM x\nPARAMETER seed 4\n"
    users = tmp_path / "out" / "Modelfile"
    assert "seed" in users.read_text()
    users.write_text("FROM y\n# precious\n")
    with pytest.raises(GgtuneError, match="not written by ggtune"):
        package_model(model, "m", out_dir=tmp_path / "out", modelfile=other)
    assert users.read_text() == "FROM y\n# precious\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FROM x\nBROKEN y\n", r'Modelfile, line 2: "BROKEN" is not an instruction'),
        ("FROM x\nPARAMETER heat 3\n", "line 2: Ollama has no parameter"),
        ("FROM x\nRENDERER gemma\n", "has RENDERER, which only"),
        ("FROM x\nSYSTEM S\nTEMPLATE {{ .Prompt }}\n", "no place for its SYSTEM"),
    ],
)
def test_a_modelfile_that_can_not_be_extended(tmp_path, text, message):
    model = samples.write_model(tmp_path / "m.gguf", chat_template=LLAMA2)
    (tmp_path / "Modelfile").write_text(text)
    for check in (package_model, check_packaging):
        more = {} if check is package_model else {"template": None, "system": None}
        with pytest.raises(GgtuneError, match=message):
            check(model, "m", out_dir=tmp_path, store=tmp_path / "s", **more)
    assert (tmp_path / "Modelfile").read_text() == text
    assert not (tmp_path / "s").exists()


# -- adapters ------------------------------------------------------------------------------------------------------


def test_one_base_for_two_adapters(tmp_path):
    base = samples.write_model(tmp_path / "base.gguf", chat_template=LLAMA2)
    results = []
    for i in (1, 2):
        adapter = samples.write_adapter(tmp_path / f"a{i}.gguf", value=float(i))
        results.append(
            package_model(base, f"m{i}", out_dir=tmp_path / f"out{i}", store=tmp_path / "s", adapters=[(adapter, 1.0)])
        )
        assert check_same(results[-1]).adapter == f"../a{i}.gguf"
    blobs = [[found.digest for found in result.stored.layers] for result in results]
    assert blobs[0][0] == blobs[1][0]
    assert blobs[0][1] != blobs[1][1]
    assert results[1].stored.written_bytes < base.stat().st_size


def test_notes_of_the_adapter_come_before_the_bases(tmp_path):
    base = samples.write_model(
        tmp_path / "base.gguf", chat_template=LLAMA2, ggtune__template="chatml", ggtune__system="Base."
    )
    for notes, expected in [
        ({}, ("chatml", "Base.")),
        ({"template": "alpaca", "system": "Adapter."}, ("alpaca", "Adapter.")),
        ({"template": "alpaca", "system": ""}, ("alpaca", None)),  # trained without any
    ]:
        adapter = samples.write_adapter(tmp_path / "a.gguf", **notes)
        result = package_model(base, "m", out_dir=tmp_path / "o", store=tmp_path / "s", adapters=[(adapter, 1.0)])
        assert (result.template, check_same(result).system) == expected
    result = package_model(base, "m", out_dir=tmp_path / "o", template="llama2", system="X.", adapters=[(adapter, 1.0)])
    assert (result.template, result.system) == ("llama2", "X.")
    assert "used the template alpaca, not llama2" in str(result)
    assert "had no system text" in str(result)


def test_differing_system_texts_are_none(tmp_path):
    base = samples.write_model(tmp_path / "base.gguf", chat_template=LLAMA2, ggtune__system="Base.")
    adapter = samples.write_adapter(tmp_path / "a.gguf", system="", system_differs="true")
    merged = samples.write_model(
        tmp_path / "merged.gguf", chat_template=LLAMA2, ggtune__system="", ggtune__system_differs="true"
    )
    for result in (
        package_model(base, "m", out_dir=tmp_path / "o", store=tmp_path / "s", adapters=[(adapter, 1.0)]),
        package_model(merged, "m", out_dir=tmp_path / "o2", store=tmp_path / "s"),
    ):
        assert check_same(result).system is None
        assert "No SYSTEM was written: the samples" in str(result)
    assert package_model(merged, "m", out_dir=tmp_path / "o", system="One.").system == "One."


def test_several_adapters_become_one(tmp_path):
    base = samples.write_model(tmp_path / "base.gguf", chat_template=LLAMA2)
    first = samples.write_adapter(tmp_path / "a.gguf", template="llama2", system="A.")
    second = samples.write_adapter(tmp_path / "b.gguf", value=3.0, template="chatml")
    out = tmp_path / "out"
    for _ in range(2):  # its own file is replaced
        result = package_model(
            base, "m", out_dir=out, store=tmp_path / "s", adapters=[(first, 1.0), (second, 0.5)], system="A."
        )
        modelfile = check_same(result)
        assert modelfile.adapter == "./stacked-adapter.gguf"
        assert "another template or system text" in str(result)
        assert (result.template, modelfile.system) == ("llama2", "A.")
    total = read_adapter(out / "stacked-adapter.gguf")
    a, b = (total.tensors[f"blk.0.attn_q.weight.lora_{side}"] for side in "ab")
    assert (b @ a * total.alpha / 2 == 1.0 + 0.5 * 3.0).all()
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "stacked-adapter.gguf"]
    with pytest.raises(GgtuneError, match="give a folder"):
        package_model(base, "m", store=tmp_path / "s", adapters=[(first, 0.5)])
    samples.write_adapter(out / "stacked-adapter.gguf")
    with pytest.raises(GgtuneError, match="was not made by stacking"):
        package_model(base, "m", out_dir=out, adapters=[(first, 0.5)])
    with pytest.raises(GgtuneError, match="is one of the adapters itself"):
        package_model(base, "m", out_dir=out, adapters=[(out / "stacked-adapter.gguf", 0.5)])


def test_a_failing_store_leaves_no_stacked_adapter(tmp_path):
    base = samples.write_model(tmp_path / "base.gguf", chat_template=LLAMA2)
    adapter = samples.write_adapter(tmp_path / "a.gguf")
    (tmp_path / "store").write_text("a file")
    with pytest.raises(GgtuneError, match="this Ollama store"):
        package_model(base, "m", out_dir=tmp_path / "out", store=tmp_path / "store", adapters=[(adapter, 0.5)])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"architecture": "gemma"}, "an adapter for a gemma model"),
        ({"tensor": "blk.7.attn_q.weight"}, "another model than .*: the model has no linear blk.7.attn_q.weight"),
        ({"n_in": 16}, "blk.0.attn_q.weight is 16 to 32 in it and 32 to 32 in the model"),
        ({"value": float("nan")}, "not finite"),
        ({"base_fingerprint": "another"}, "was trained on another base than"),
        ({"kind": "control"}, "not a LoRA adapter"),
    ],
)
def test_an_adapter_of_another_base(tmp_path, adapter, message):
    base = samples.write_model(tmp_path / "base.gguf", chat_template=LLAMA2)
    wrong = samples.write_adapter(tmp_path / "a.gguf", **adapter)
    good = samples.write_adapter(tmp_path / "good.gguf")
    for adapters in ([(wrong, 1.0)], [(good, 1.0), (wrong, 0.5)]):
        with pytest.raises(GgtuneError, match=message):
            package_model(base, "m", out_dir=tmp_path / "out", store=tmp_path / "s", adapters=adapters)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "s").exists()


def test_the_fingerprint_of_the_base(tmp_path):
    base = samples.write_model(tmp_path / "base.gguf", chat_template=LLAMA2)
    adapter = samples.write_adapter(tmp_path / "a.gguf", base_fingerprint=model_fingerprint(base))
    moved = base.rename(tmp_path / "moved.gguf")
    assert "another base" not in str(package_model(moved, "m", out_dir=tmp_path / "o", adapters=[(adapter, 1.0)]))
    other = samples.write_model(tmp_path / "merged.gguf", chat_template=LLAMA2, ggtune__template="llama2")
    with pytest.raises(GgtuneError, match=r"merged in, is another base, too.*--force"):
        package_model(other, "m", out_dir=tmp_path / "o", adapters=[(adapter, 1.0)])
    result = package_model(other, "m", out_dir=tmp_path / "o", adapters=[(adapter, 1.0)], force=True)
    assert "taken all the same, since --force is given" in str(result)


# -- before a training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"template": "chatlm"}, 'no template "chatlm"'),
        ({"template": "model"}, "no chat template of its own"),
        ({"template": "gemma", "system": "S"}, "no place for a system text"),
        ({"name": "a b"}, "not a model name"),
        ({"params": {"heat": 1}}, 'no parameter "heat"'),
        ({"template": "llama2", "system": 'x"""'}, "three quotation marks"),
        ({"model": Path("none.gguf")}, "no such file"),
        ({"out_dir": Path("file")}, "can't write to the folder"),
        ({"out_dir": Path("in_the_way")}, "Modelfile: it is a folder"),
        ({"store": Path("file")}, "this Ollama store"),
    ],
)
def test_checked_before_as_afterwards(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("in_the_way/Modelfile").mkdir(parents=True)
    samples.write_model(Path("m.gguf"))
    given = {"model": Path("m.gguf"), "name": "m", "out_dir": Path("out"), "store": Path("store")}
    given |= {"template": "llama2", "system": None, "params": None} | arguments
    before = sorted(tmp_path.rglob("*"))
    model, name = given.pop("model"), given.pop("name")
    for check in (check_packaging, package_model):
        with pytest.raises(GgtuneError, match=message):
            check(model, name, **given)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_store_that_will_be_full(tmp_path, make_disk):
    disk = make_disk("20m")
    model = samples.write_model(tmp_path / "m.gguf")
    settings = {"out_dir": tmp_path / "out", "store": disk / "store", "template": "llama2", "system": "S."}
    check_packaging(model, "m", **settings)
    with pytest.raises(GgtuneError, match="too little room"):
        check_packaging(model, "m", **settings, model_bytes=8 << 20)
    assert not list(disk.iterdir())
    assert not (tmp_path / "out").exists()


def test_a_template_that_is_not_known_before_is_the_trainings_affair(tmp_path):
    """Nor does the one count that the base was trained with earlier."""
    for template, chat_template in [("gemma", LLAMA2), ("gemma", None)]:
        model = samples.write_model(tmp_path / "m.gguf", chat_template=chat_template, ggtune__template=template)
        check_packaging(model, "m", out_dir=tmp_path, store=None, template=None, system="S.")
        with pytest.raises(GgtuneError, match="no place for a system text"):
            check_packaging(model, "m", out_dir=tmp_path, store=None, template=template, system="S.")
