"""Tokens as HTML, for notebooks and for the page of `tinkerloop inspect`.

Trained tokens are shaded, tokens that the chat format adds are dim, and truncated tokens are struck out. The shade
alternates from token to token. Text is escaped; control characters are shown as symbols.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tinkerloop.images.chunks import image_size, open_image
from tinkerloop.renderers.pieces import Part
from tinkerloop.terminal import printable

if TYPE_CHECKING:
    from tinker.types import ImageChunk

THUMBNAIL = 160
"""Largest width and height of an image's thumbnail, in pixels."""

TOKEN_STYLE = """
.tinkerloop { white-space: pre-wrap; overflow-wrap: anywhere; font: 14px/1.7 ui-monospace, monospace; }
.tinkerloop { border: 1px solid #8884; padding: .6rem 1rem; margin: .5rem 0; text-align: left; }
.tinkerloop span:nth-child(odd) { background: #8882; }
.tinkerloop .trained { background: #16a34a44; font-weight: 600; }
.tinkerloop .trained:nth-child(odd) { background: #16a34a77; }
.tinkerloop .scaffold { opacity: .6; }
.tinkerloop .trained.scaffold { opacity: 1; }
.tinkerloop .cut { text-decoration: line-through; color: #d33; }
.tinkerloop figure { display: inline-block; margin: .3rem; vertical-align: middle; text-align: center; }
.tinkerloop figure { font-size: 12px; }
.tinkerloop figure.cut img { opacity: .3; }
"""
"""The style of `tokens_html`. It reaches nothing else on a page, and suits light and dark backgrounds."""


@dataclass(frozen=True)
class Token:
    """One token to show. All tokens of an image are shown as one, with `count` as their number."""

    text: str
    id: int
    weight: float
    part: Part
    message: int
    is_cut: bool
    count: int = 1
    image: ImageChunk | None = None


def shown_tokens(
    ids: Sequence[int],
    spans: Iterable[tuple[int, int, int, Part, float]],
    images: Mapping[int, ImageChunk],
    decode: Callable[[list[int]], str],
    limit: int,
) -> list[Token]:
    """Return the tokens to show. A character of several tokens is shown at its last token.

    Args:
        ids: the N token ids; 0 at the positions of images.
        spans: the spans of the tokens, as in `Rendered.spans`.
        images: the images, by the position of their first token.
        decode: function from token ids to their text.
        limit: tokens from this position on are cut off.
    """
    shown: list[Token] = []
    pending: list[int] = []
    after_image = 0
    for start, stop, message, part, weight in spans:
        for i in range(start, stop):
            if i in images:
                shown.append(_image_token(images[i], message, i, limit))
                after_image = i + shown[-1].count
            if i < after_image:
                continue
            pending.append(ids[i])
            text = decode(pending)
            is_complete = not text.endswith("\ufffd") or len(pending) > 3
            if is_complete:
                pending = []
            shown.append(Token(text if is_complete else "", ids[i], weight, part, message, i >= limit))
    return shown


def _image_token(chunk: ImageChunk, message: int, position: int, limit: int) -> Token:
    """Return one `Token` for all tokens of an image. If truncation cuts one of them, the image is marked as cut."""
    (width, height), count = image_size(chunk.data), chunk.expected_tokens or 0
    text = f"[image {width} × {height}, {count} tokens]"
    return Token(text, 0, 0.0, Part.SCAFFOLD, message, position + count > limit, count, chunk)


def token_totals(tokens: Sequence[Token]) -> str:
    """Return one line with the numbers of tokens, trained tokens and truncated tokens."""
    trained = [t for t in tokens if t.weight and not t.is_cut]
    weights = sorted({t.weight for t in trained})
    cut = sum(t.count for t in tokens if t.is_cut)
    lost = sum(bool(t.weight) for t in tokens if t.is_cut)
    line = f"{sum(t.count for t in tokens):,} tokens, {len(trained):,} trained"
    if weights not in ([], [1.0]):
        line += f" with weights {', '.join(f'{w:g}' for w in weights)}"
    return line + (f"; {cut:,} cut off, {lost:,} of them trained" if cut else "")


def tokens_html(tokens: Iterable[Token]) -> str:
    """Return the tokens as HTML, for a page with `TOKEN_STYLE`. Pointing at a token shows its id and weight."""
    return f'<pre class="tinkerloop">{"".join(map(_span, tokens))}</pre>'


def styled(*parts: str) -> str:
    """Return parts of HTML, one after another, with the style that they need."""
    return f"<style>{TOKEN_STYLE}</style>{''.join(parts)}"


def text_html(text: object) -> str:
    """Return a text as HTML: escaped, with line ends and control characters as visible symbols."""
    return visible(html.escape(str(text)))


_LINE_ENDS = str.maketrans({"\t": "␉\t", "\n": "⏎\n"})


def visible(text: str) -> str:
    """Return the text with line ends and control characters replaced by visible symbols."""
    return printable(text).translate(_LINE_ENDS)


def _figure(token: Token, image: ImageChunk) -> str:
    """Return an HTML figure: a thumbnail of the image, labelled with its size, number of tokens and format."""
    thumbnail = open_image(image).convert("RGB")
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    label = html.escape(f"message {token.message} · weight 0 · {image.format}, {len(image.data):,} bytes", quote=True)
    text = html.escape(token.text.strip("[]"))
    css = ' class="cut"' if token.is_cut else ""
    return f'<figure{css} title="{label}"><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _span(token: Token) -> str:
    if token.image is not None:
        return _figure(token, token.image)
    classes = [name for name, holds in (("trained", token.weight), ("cut", token.is_cut)) if holds]
    if token.part is Part.SCAFFOLD:
        classes.append("scaffold")
    owner = "format" if token.message < 0 else f"message {token.message}"
    label = html.escape(f"id {token.id} · weight {token.weight:g} · {owner} · {token.part.name.lower()}", quote=True)
    return f'<span class="{" ".join(classes)}" title="{label}">{text_html(token.text)}</span>'
