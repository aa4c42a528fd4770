"""Words, numbers and marks of a text written like English, in fastai's conventions."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from operator import eq
from typing import Any

from treadle.registry import register
from treadle.text.generate import decode_spec_tokens
from treadle.text.tokenize import (
    BOS,
    EOS,
    PAD,
    SPECIAL,
    TK_MAJ,
    TK_REP,
    TK_UP,
    TK_WREP,
    UNK,
    Tokenizer,
)

__all__ = ["WordTokenizer", "fix_html"]

Rule = Callable[[str], str]


_MENDED = {
    **{"<br />": "\n", "<br/>": "\n", "<br>": "\n", "\\n": "\n", '\\"': '"'},
    # entities that have lost their &, as some data sets have them
    **{"#39;": "'", "#146;": "'", "#36;": "$", "amp;": "&", "nbsp;": " ", "quot;": '"'},
    **{"<unk>": UNK, " @-@ ": "-", " @.@ ": ".", " @,@ ": ",", "...": "…"},
}


@register
def fix_html(text: str) -> str:
    """What HTML and data sets made of a text, as it was: entities (also those that have lost their
    `&`), line breaks, escaped quotes, `<unk>`, and WikiText's ` @-@ `. Three dots become one
    ellipsis.

    >>> fix_html("Fish &amp; chips<br />cost 1 @,@ 000 ...")
    'Fish & chips\\ncost 1,000 …'
    """
    text = html.unescape(text)
    for found, meant in _MENDED.items():
        text = text.replace(found, meant)
    return text


_TOKEN = re.compile(
    r"\w+(?:['’]\w+|(?<=\d)[.,]\d+)*"
    r"|['’](?:[smdtSMDT]|re|ve|ll|RE|VE|LL)\b"  # of a word in a text that was split before
    r"|[^\w\s]"
    r"|\n\s*"
)
_CLITIC = re.compile(r"n['’]t$|['’](?:s|m|d|re|ve|ll)$", re.IGNORECASE)
_REPEATED = re.compile(r"([^\W\d])\1{2,}")


@register
class WordTokenizer(Tokenizer):
    """Words, numbers, marks and line ends are a token each; `don't` is two, `do` and `n't`.

    Letters become small: `xxmaj` stands before a word that began with a capital, `xxup` before one
    in capitals; words of one letter and of mixed letters get no such token. What comes three times
    or more in a row is `xxrep`, the count and the letter or mark, or `xxwrep`, the count and the
    word; digits of a number do not count. A run of line ends is one token. The names of these
    tokens, and what they mean, are fastai's.

    - `rules`: functions of the text that come before the splitting; None means `[fix_html]`.
    - `lower`: make letters small, with `xxmaj` and `xxup`; False leaves them as they are.
    - `add_bos`, `add_eos`: put `xxbos` before a document, `xxeos` after it.

    A word of the text that looks like a special token counts as it.

    >>> tokens = WordTokenizer()("Don't SHOUT: it's well-known!!!! I paid $1,000.50.")
    >>> print(*tokens)
    xxbos xxmaj do n't xxup shout : it 's well - known xxrep 4 ! i paid $ 1,000.50 .
    >>> WordTokenizer().detokenize(tokens)
    "Don't SHOUT: it's well-known!!!! i paid $1,000.50."
    """

    def __init__(
        self,
        rules: Sequence[Rule] | None = None,
        lower: bool = True,
        add_bos: bool = True,
        add_eos: bool = False,
    ) -> None:
        self.rules = [fix_html] if rules is None else list(rules)
        self.lower, self.add_bos, self.add_eos = lower, add_bos, add_eos
        # a word is split and marked once, however often it comes
        self._pieces = _Pieces(lower)

    def as_arguments(self) -> dict[str, Any]:
        """The arguments that make the tokenizer."""
        return {
            "rules": self.rules,
            "lower": self.lower,
            "add_bos": self.add_bos,
            "add_eos": self.add_eos,
        }

    def __call__(self, text: str) -> list[str]:
        for rule in self.rules:
            text = rule(text)
        found = _TOKEN.findall(text.strip())
        tokens = [BOS] if self.add_bos else []
        start = 0
        for first, end in _runs(found):
            tokens += chain.from_iterable(map(self._pieces.__getitem__, found[start:first]))
            word = found[first]
            tokens += [TK_WREP if word[0].isalnum() else TK_REP, str(end - first)]
            tokens += self._pieces[word]
            start = end
        tokens += chain.from_iterable(map(self._pieces.__getitem__, found[start:]))
        if self.add_eos:
            tokens.append(EOS)
        return tokens

    def detokenize(self, tokens: Iterable[str]) -> str:
        """The tokens as a text to be read: marks are undone, and spaces set as they usually are."""
        left = [token for token in tokens if token not in (PAD, BOS, EOS)]
        return _joined(decode_spec_tokens(left))


def _runs(found: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Where the same comes three times or more in a row: its first place, and the one after it."""
    same = [*map(eq, found, islice(found, 1, None)), False]
    first = -1
    with suppress(ValueError):  # of `index`, when there is no other
        while True:
            first = same.index(True, first + 1)
            end = same.index(False, first)
            if end - first >= 2:
                yield first, end + 1
            first = end


class _Pieces(dict[str, list[str]]):
    """The tokens that each word found makes."""

    def __init__(self, lower: bool) -> None:
        self.lower = lower

    def __missing__(self, word: str) -> list[str]:
        made = ["\n"] if word.isspace() else self._made(word)
        if len(self) < _MOST_WORDS:
            self[word] = made
        return made

    def _made(self, word: str) -> list[str]:
        clitic = _CLITIC.search(word)
        at = clitic.start() if clitic is not None and clitic.start() > 0 else len(word)
        made = []
        for part in (word[:at], word[at:]):
            start = 0
            for repeated in _REPEATED.finditer(part):
                made += self._marked(part[start : repeated.start()])
                made += [TK_REP, str(len(repeated[0])), *self._marked(repeated[1])]
                start = repeated.end()
            made += self._marked(part[start:])
        return made

    def _marked(self, word: str) -> list[str]:
        small = word.lower()
        if not word or not self.lower or small == word or len(word) == 1:
            return [small if self.lower else word] if word else []
        if word.isupper():
            return [TK_UP, small]
        return [TK_MAJ, small] if word[1:] == small[1:] else [small]


_MOST_WORDS = 1 << 20
"""So many different words are remembered, some 200 MB of them."""

_NO_SPACE_BEFORE = frozenset(".,;:!?)]}%…'’-/") | {"n't", "n’t", "\n"}
_NO_SPACE_AFTER = frozenset("([{$#-/") | {"\n"}


def _joined(words: Sequence[str]) -> str:
    text, quoted = "", False
    glued = True  # at the beginning
    for word in words:
        opens = word == '"' and not quoted
        closes = word == '"' and quoted
        before = word in _NO_SPACE_BEFORE or (word[:1] in "'’.!?" and word not in SPECIAL)
        text += word if glued or before or closes else f" {word}"
        glued = word in _NO_SPACE_AFTER or opens
        quoted = quoted != (word == '"')
    return text
