#!/usr/bin/env python3
"""Of a checkpoint, keeps what sampling needs: the averaged weights as float16, and the metadata.

shrink.py CHECKPOINT OUT
"""
import json
import struct
import sys


def main():
    with open(sys.argv[1], "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    small = {"__metadata__": header.pop("__metadata__")}
    parts, end = [], 0
    for name, entry in header.items():
        if not name.startswith("ema_"):
            continue
        begin, stop = entry["data_offsets"]
        count = (stop - begin) // 4
        part = struct.pack(f"<{count}e", *struct.unpack(f"<{count}f", data[begin:stop]))
        small[name] = {"dtype": "F16", "shape": entry["shape"], "data_offsets": [end, end + len(part)]}
        parts.append(part)
        end += len(part)
    text = json.dumps(small, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(sys.argv[2], "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(parts))


main()
