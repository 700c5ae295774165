"""The legend of a class map as GDAL and QGIS read it: a raster attribute table and category names beside the map."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from autoreg.output import atomic_output, remove_leftovers
from autoreg.spec import MapClass

_INTEGER, _REAL, _STRING = range(3)
"""Types of columns, as GDAL numbers them (``GDALRATFieldType``)."""
_COLUMNS = (
    ("Value", _INTEGER, 5),
    ("Count", _REAL, 1),  # a large map has more pixels than GDAL's 32 bit integers can count
    ("ClassName", _STRING, 2),
    ("Red", _INTEGER, 6),
    ("Green", _INTEGER, 7),
    ("Blue", _INTEGER, 8),
    ("Alpha", _INTEGER, 9),
)
"""Name, type and usage (``GDALRATFieldUsage``) of the columns."""


def write_attribute_table(map_path: Path, classes: Sequence[MapClass], pixels: Mapping[int, int]) -> None:
    """Write ``<map_path>.aux.xml``, which GDAL reads with the map; one that is there is replaced.

    Args:
        map_path: of the class map; it is not opened.
        classes: its legend: the rows of the table, by their labels.
        pixels: how many pixels have each label; one that is missing has none.

    Raises:
        OutputError: it cannot be written.
    """
    root = ElementTree.Element("PAMDataset")
    band = ElementTree.SubElement(root, "PAMRasterBand", band="1")
    by_label = {item.label: item for item in classes}
    names = ElementTree.SubElement(band, "CategoryNames")
    for label in range(max(by_label) + 1):  # a category's label is its place in the list
        ElementTree.SubElement(names, "Category").text = by_label[label].name if label in by_label else ""
    table = ElementTree.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(_COLUMNS):
        column = ElementTree.SubElement(table, "FieldDefn", index=str(index))
        for key, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            ElementTree.SubElement(column, key).text = str(value)
    for index, (label, item) in enumerate(sorted(by_label.items())):
        row = ElementTree.SubElement(table, "Row", index=str(index))
        for value in (label, pixels.get(label, 0), item.name, *item.rgb, 255):
            ElementTree.SubElement(row, "F").text = str(value)
    ElementTree.indent(root)
    path = map_path.with_name(map_path.name + ".aux.xml")
    remove_leftovers(path)
    with atomic_output(path, overwrite=True) as target:
        target.write_bytes(ElementTree.tostring(root, encoding="utf-8") + b"\n")
