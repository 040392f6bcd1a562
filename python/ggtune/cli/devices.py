"""``ggtune devices``."""

import json

import click


@click.command("devices")
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print them as JSON.")
def command(model: str | None, as_json: bool) -> None:
    """List the devices (GPUs) that layers can be trained on: name, memory, what they do.

    With a MODEL, a GGUF file, also how many of its layers would fit on each; its output head counts as one.
    """
    from ggtune.train.device_list import device_list, no_devices

    found = device_list(model)
    if as_json:
        click.echo(json.dumps([device.to_dict() for device in found], indent=2, ensure_ascii=False))
        return
    for line in [line for device in found for line in device.lines()] or no_devices():
        click.echo(line)
