"""A reader of TensorBoard's event files that takes nothing but whole records with the right checksums."""

import struct
from collections import defaultdict
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files: https://www.tensorflow.org/tutorials/load_data/tfrecord."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder: Path) -> list[Event]:
    """Read all files of a folder, in TensorBoard's order."""
    found = []
    for path in sorted(folder.glob("*tfevents*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            assert struct.unpack("<I", data[at + 8 : at + 12])[0] == masked_crc32c(data[at : at + 8])
            body = data[at + 12 : at + 12 + length]
            assert struct.unpack("<I", data[at + 12 + length : at + 16 + length])[0] == masked_crc32c(body)
            found.append(Event.FromString(body))
            at += 16 + length
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every number, by tag, in the order in which they are written."""
    found = defaultdict(list)
    for event in events(folder):
        for value in event.summary.value:
            if value.WhichOneof("value") == "simple_value":
                found[value.tag].append((event.step, value.simple_value))
    return dict(found)


def texts(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Step and text of everything that TensorBoard shows as text."""
    found = defaultdict(list)
    for event in events(folder):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "text":
                found[value.tag].append((event.step, value.tensor.string_val[0].decode()))
    return dict(found)


def hyperparameters(folder: Path) -> tuple[dict[str, Any], bool]:
    """The settings, and whether the session has ended well."""
    values: dict[str, Any] = {}
    has_ended = False
    for event in events(folder):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name == "hparams":
                data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                for name, item in data.session_start_info.hparams.items():
                    kind = item.WhichOneof("kind")
                    values[name] = getattr(item, kind)
                has_ended |= data.WhichOneof("data") == "session_end_info"
    return values, has_ended


def restarts(folder: Path) -> list[int]:
    """Steps from which on TensorBoard drops what it has read before."""
    return [event.step for event in events(folder) if event.session_log.status == SessionLog.START]
