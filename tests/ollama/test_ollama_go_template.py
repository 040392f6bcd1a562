"""The evaluator of Go templates: what it does by itself, and that real Go does the same where it is installed."""

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import gguf_samples as samples
import pytest

from ggtune.data.templates import TEMPLATES
from ggtune.gguf.vocabulary import SpecialTokens
from ggtune.ollama.go_template import GoTemplate, GoTemplateError, Message, render_for_ollama
from ggtune.ollama.templates import choose_ollama_template, ollama_template

VENDORED = sorted((Path(__file__).parents[2] / "vendor/llama.cpp/models/templates").glob("*.jinja"))
CHAT = [Message("system", "S"), Message("user", "Q1"), Message("assistant", "é水"), Message("user", "Q2")]
DATA = {"System": "S", "Empty": "", "Messages": CHAT}

# template, text
CASES = [
    ("a \n{{- .System -}} \t\n b", "aSb"),
    ("{{.System}}{{ .Empty }}{{/* a comment }} */}}{{- /* another */ -}} x", "Sx"),
    ("-{{ .Missing }}-{{ if .Missing }}y{{ end }}", "-<no value>-"),
    ('{{ "\\"{{\\\\\\n\\t\\u00e9\\U0001f600" }}{{ `raw\\n}}` }}', '"{{\\\n\té\U0001f600raw\\n}}'),
    ("{{ if .Empty }}1{{ else if .System }}2{{ else }}3{{ end }}", "2"),
    ("{{ if .Empty }}1{{ else if .Empty }}2{{ else }}3{{ end }}", "3"),
    ("{{if(eq .System `S`)}}y{{end}}", "y"),
    ("{{ range .Messages }}[{{ .Role }}]{{ end }}", "[system][user][assistant][user]"),
    ("{{ range $m := .Messages }}{{ $m.Role }},{{ end }}", "system,user,assistant,user,"),
    ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Content }}{{ $.System }} {{ end }}", "0SS 1Q1S 2é水S 3Q2S "),
    ("{{ range .Missing }}x{{ else }}none{{ end }}", "none"),
    ("{{ $x := `a` }}{{ if .System }}{{ $x = `b` }}{{ $x := `c` }}{{ end }}{{ $x }}", "b"),
    (
        "{{ $f := true }}{{ range .Messages }}{{ if $f }}<{{ end }}{{ $f = false }}{{ .Role }}{{ end }}",
        "<systemuserassistantuser",
    ),
    ("{{ range $i, $_ := .Messages }}{{ eq (len (slice $.Messages $i)) 1 }} {{ end }}", "false false false true "),
    ("{{ (index .Messages 1).Content }}{{ len (index .Messages 2).Content }}", "Q15"),
    ("{{ slice (index .Messages 2).Content 2 }}{{ slice `abc` 1 2 }}{{ slice `abc` }}", "水babc"),
    ("{{ slice `abc` (len (slice `abc` 1)) }}", "c"),
    ("{{ and .System 1 }} {{ and .Empty 1 }}| {{ or .Empty .System }} {{ or .Empty 0 }}", "1 | S 0"),
    ("{{ and (ge (len .Empty) 1) (eq (slice .Empty 0 1) ` `) }}", "false"),
    ("{{ not .Empty }} {{ not 1 }} {{ not .Messages }} {{ not (index .Messages 0) }}", "true false false false"),
    (
        "{{ eq 1 2 3 1 }} {{ ne `a` `b` }} {{ lt 1 2 }} {{ le 2 2 }} {{ gt -1 2 }} {{ ge `b` `a` }}",
        "true true true true false true",
    ),
    ("{{ lt `Z` `a` }} {{ lt `z` `é` }} {{ eq true true }}", "true true true"),
    ("{{ .System | len }} {{ .System | eq `S` }} {{ 2 | slice `abc` 1 | len }}", "1 true 1"),
    ("{{ true }} {{ -3 }} {{ $y := 1 }}{{ $y }}", "true -3 1"),
    ("{ {{ .System }} } }}", "{ S } }}"),
    ("{{ if .System -}}\n{{ .System }}\n{{- end }}\n", "S\n"),
    ("{{3 -}} x{{- 4 }}", "3x4"),
]
ERRORS = [
    "{{ if .System }}",
    "{{ end }}",
    "{{ else }}",
    "{{ if .System }}{{ else }}{{ else }}{{ end }}",
    "{{ range .Messages }}{{ else if .System }}{{ end }}",
    "{{ .System",
    "{{ }}",
    "{{ if }}x{{ end }}",
    "{{ (len .System }}",
    "{{ len .System) }}",
    '{{ "open }}',
    "{{ unknown .System }}",
    "{{ .System 1 }}",
    "{{ $undefined }}",
    "{{ {.System }}",
    "{{ slice .Empty 0 1 }}",
    "{{ slice `abc` 2 1 }}",
    "{{ index .Messages 4 }}",
    "{{ eq 1 `a` }}",
    "{{ lt true false }}",
    "{{ eq 1 }}",
    "{{ len 1 }}",
    "{{ len }}",
    "{{ not }}",
    "{{ range .System }}{{ end }}",
    "{{ range .Messages }}{{ .Nothing }}{{ end }}",
    "{{ end of it }}",
]

MAIN = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func run(text string, data map[string]any) (string, error) {
	parsed, err := template.New("").Option("missingkey=zero").Parse(text)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	err = parsed.Execute(&out, data)
	return out.String(), err
}

func main() {
	var cases []struct {
		Template string
		Texts    map[string]string
		Messages []*Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	results := [][2]string{}
	for _, one := range cases {
		data := map[string]any{"Messages": one.Messages}
		for name, text := range one.Texts {
			data[name] = text
		}
		text, err := run(one.Template, data)
		failure := ""
		if err != nil {
			failure = err.Error()
		}
		results = append(results, [2]string{text, failure})
	}
	json.NewEncoder(os.Stdout).Encode(results)
}
"""


@pytest.mark.parametrize(("template", "text"), CASES)
def test_evaluated(template, text):
    assert GoTemplate(template).execute(DATA) == text


@pytest.mark.parametrize("template", ERRORS)
def test_errors(template):
    with pytest.raises(GoTemplateError):
        GoTemplate(template).execute(DATA)


def test_messages_as_ollama_hands_them_over():
    template = GoTemplate("{{ .System }}|{{ range .Messages }}{{ .Role }}:{{ .Content }};{{ end }}{{ .Response }}")
    chat = [Message("system", "A"), Message("user", "1"), Message("user", "2"), Message("system", "B")]
    assert render_for_ollama(template, chat) == "A\n\nB|system:A;user:1\n\n2;system:B;"


def go(cases, tmp_path):
    """What real Go gives for (template, data): (text, error) for each."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    (tmp_path / "main.go").write_text(MAIN)
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/local/go/bin", "GO111MODULE": "off"}
    request = [
        {
            "Template": template,
            "Texts": {name: value for name, value in data.items() if isinstance(value, str)},
            "Messages": [asdict(message) for message in data["Messages"]],
        }
        for template, data in cases
    ]
    done = subprocess.run(
        [shutil.which("go"), "run", "main.go"],
        input=json.dumps(request).encode(),
        capture_output=True,
        cwd=tmp_path,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_real_go_gives_the_same(tmp_path):
    tokens = SpecialTokens("<s>", "</s>", add_bos=True, ends=("</s>",))
    written = [ollama_template(template, tokens).text for template in TEMPLATES.values()]
    jinja = [text for text, _, _ in samples.JINJA.values()] + [path.read_text() for path in VENDORED]
    chosen = [choose_ollama_template("model", text, tokens)[0] for text in jinja]
    written += [template.text for template in chosen if template is not None]
    assert len(written) > len(jinja)
    chats = [CHAT[1:2], CHAT[:2], CHAT[1:], CHAT, [*CHAT, Message("assistant", " as written "), CHAT[1]]]
    cases = [(template, DATA) for template, _ in CASES] + [(template, DATA) for template in ERRORS]
    chats.append([CHAT[1], Message("assistant", "<think>\n\n</think>\n\nA\n"), *CHAT[1:]])
    datas = [{"System": "S" if chat[0] is CHAT[0] else "", "Messages": chat} for chat in chats]
    cases += [(template, data) for template in written for data in datas]
    results = go(cases, tmp_path)
    for (template, data), (text, failure) in zip(cases, results, strict=True):
        if not failure:
            assert GoTemplate(template).execute(data) == text, template
    assert [bool(failure) for _, failure in results] == [False] * len(CASES) + [True] * len(ERRORS) + [False] * (
        len(written) * len(chats)
    )
