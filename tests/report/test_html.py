"""The report as an HTML page."""

from html.parser import HTMLParser

import torch
from torch import nn

import passfx
from models.pass_layer import PassVariants
from passfx.report.html import to_html


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_shows_operators_shortcuts_passes_and_parity() -> None:
    report = passfx.optimize(PassVariants(4), (torch.randn(1, 4, 8, 8),)).report
    page = _Text()
    page.feed(to_html(report))
    text = " ".join(page.text.split())
    assert page.open == []
    assert f"{report.before.nodes} → {report.after.nodes}" in text
    assert [text.count(f"{kind} ") for kind in ("identity", "projection")] == [1, 2]
    assert "collapse: 8 rewrites, 0 refusals" in text
    assert f"tolerated {report.parity.tolerance:.1e}" in text
    assert all(item.merge in text for item in report.shortcuts)


def test_names_from_the_model_are_escaped() -> None:
    report = passfx.optimize(nn.ReLU(), (torch.randn(2),)).report
    page = to_html(type(report)(**{**vars(report), "source": "<script>x</script>"}))
    assert "<script>" not in page
