"""The comparison as JUnit XML: a test case a gate, and one a comparison for the record."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from rwkvbatch.compare.analysis import Analysis
from rwkvbatch.compare.output.wording import heading, interval, number, p_value, signed
from rwkvbatch.text.safe import printable


def as_junit(analysis: Analysis) -> str:
    """`testsuites` with the suite `gates`, and one suite a pair, whose cases never fail."""
    root = ET.Element("testsuites", name="rwkvbatch compare")
    failed = sum(gate.failed for gate in analysis.gates)
    suite = ET.SubElement(
        root, "testsuite", name="gates", tests=str(len(analysis.gates)), failures=str(failed), errors="0"
    )
    for gate in analysis.gates:
        case = ET.SubElement(suite, "testcase", classname=safe(gate.label), name=safe(gate.gate.text))
        if gate.failed:
            ET.SubElement(case, "failure", message=safe(gate.line))
    suites: dict[str, ET.Element] = {}
    for line in analysis.comparisons:
        title = heading(line)
        if title not in suites:
            suites[title] = ET.SubElement(root, "testsuite", name=safe(title), failures="0", errors="0")
        case = ET.SubElement(suites[title], "testcase", classname=safe(title), name=line.metric.name)
        digits = line.metric.digits
        ET.SubElement(case, "system-out").text = (
            f"{number(line.baseline_mean, digits)} -> {number(line.variant_mean, digits)}, "
            f"{signed(line.difference, digits)} {interval(line)}, p {p_value(line.p_holm)}, {line.verdict}"
        )
    for suite in suites.values():
        suite.set("tests", str(len(suite)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def safe(text: str) -> str:
    """`text` on one line and without what XML 1.0 has no place for at all, such as most control characters."""
    return printable(text, keep_newlines=False).replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")
