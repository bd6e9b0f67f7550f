#!/usr/bin/env python3
"""Writes the playground's built-in images, one of each class named, from Debian's Fashion-MNIST.

images.py OUT.js
"""
import base64
import gzip
import sys

FOLDER = "/usr/share/datasets/fashion-mnist/"
NAMES = {9: "ankle boot", 2: "pullover", 1: "trouser", 8: "bag", 3: "dress", 5: "sandal"}
SIZE = 28


def read(name, header):
    with gzip.open(FOLDER + name) as file:
        return file.read()[header:]


def main():
    pixels = read("t10k-images-idx3-ubyte.gz", 16)
    labels = read("t10k-labels-idx1-ubyte.gz", 8)
    images = []
    for label, name in NAMES.items():
        first = labels.index(label) * SIZE * SIZE
        text = base64.b64encode(pixels[first:first + SIZE * SIZE]).decode()
        images.append(f'  {{name: "{name}", pixels: "{text}"}},\n')
    with open(sys.argv[1], "w") as file:
        file.write(f"// {SIZE} x {SIZE} grey, a byte a pixel, from Fashion-MNIST (MIT licence).\n")
        file.write("const builtInImages = [\n" + "".join(images) + "];\n")


main()
