"""Reading the HTML pages that the package writes."""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode
from html.parser import HTMLParser
from io import BytesIO

from PIL import Image

HOSTILE = '<script>alert("x")</script>&<img src=http://example.org/x.png>'


VOID = {"meta", "link", "img"}


class Page(HTMLParser):
    """The elements of a page, its texts, and whether every element is closed where it should be."""

    def __init__(self, source):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def assert_stands_alone(source):
    """No element that could load or run anything, whatever the texts say; and browsers are told so."""
    found = Page(source)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "audio", "video", "svg", "a"}
    for _, attributes in found.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:")
    (policy,) = (meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    style = re.search("<style>(.*)</style>", source, re.DOTALL)[1]
    assert b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert "url(" not in style
    assert "@import" not in style
    for image in found.all("img"):
        assert image["alt"]
        picture = Image.open(BytesIO(b64decode(image["src"].partition("base64,")[2])))
        assert (int(image["width"]), int(image["height"])) == (picture.width // 2, picture.height // 2)
    levels = [int(tag[1]) for tag in (tag for tag, _ in found.elements) if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert set(levels[1:]) == {2}
    return found
