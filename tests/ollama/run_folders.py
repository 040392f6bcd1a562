"""A run folder as ``ggtune run`` leaves one, made without training."""

import json

import gguf_samples as samples

from ggtune.ollama.modelfile import Modelfile

TEMPLATE = "[INST] {{ .Prompt }} [/INST]{{ .Response }}</s>"
SYSTEM = "You are a teacher.\nBe short."
STOPS = ["[INST]", "[/INST]"]


def make_run(folder, *, base_texts=None, merged=True, base=True, state="finished"):
    """``folder/run``, and beside it the base and the data; ``base_texts`` are keys of the base's header."""
    run = folder / "run"
    run.mkdir(parents=True)
    texts = {"general__name": "Tiny Base", "general__license": "apache-2.0"} if base_texts is None else base_texts
    if base:
        samples.write_model(folder / "base.gguf", **texts)
    if merged:
        own = {key: text for key, text in texts.items() if key.startswith("general__license")}
        own |= {"general__base_model__0__name": "Tiny Base", "ggtune__template": "llama2", "ggtune__system": SYSTEM}
        samples.write_model(run / "model.gguf", **own)
        modelfile = Modelfile("./model.gguf", template=TEMPLATE, system=SYSTEM, parameters={"stop": STOPS})
        (run / "Modelfile").write_text(str(modelfile))
    samples.write_adapter(run / "adapter.gguf")
    data = folder / "private folder" / "chem.csv"
    data.parent.mkdir()
    data.write_text("question,answer\nq1,a1\nq2,a2\n")
    settings = {"model": "base.gguf", "data": str(data), "loss_on": "answer", "rank": 4, "lr": 2e-4, "targets": ["all"]}
    (run / "config.json").write_text(json.dumps(settings))
    status = {"state": state, "reason": "", "working_folder": str(folder), "version": "0.1.0"}
    (run / "status.json").write_text(json.dumps(status))
    records = [{"step": i, "epoch": i / 10, "loss": 5 / i, "smoothed_loss": 5 / i} for i in range(1, 41)]
    for record in records[9::10]:
        record["held_out_loss"] = record["loss"] + 0.5
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return run
