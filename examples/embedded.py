"""Segment an image in another program: numpy and one engine, no torch. Run: python embedded.py model.onnx tile.tif."""

import sys

import numpy as np
import rasterio

import autoreg

engine = autoreg.load_engine(sys.argv[1])
print(f"{len(engine.spec.classes)} classes from {', '.join(engine.spec.bands)}, on {engine.device}")
with rasterio.open(sys.argv[2]) as dataset:
    image = dataset.read()
labels = autoreg.segment_array(engine, image)
names = {item.label: item.name for item in engine.spec.classes}
for label, pixels in zip(*np.unique(labels, return_counts=True), strict=True):
    print(f"{label:>3} {100 * pixels / labels.size:5.1f} % {names.get(label, 'no data')}")
