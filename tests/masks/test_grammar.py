"""The text form: it says all of a pattern, and a text that is none is refused at the right place."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformers.mask_patterns import (
    Bidirectional,
    BlockCausal,
    BlockDiffusion,
    Causal,
    Chunked,
    Dilated,
    Document,
    Gist,
    GlobalTokens,
    ParallelContext,
    Pattern,
    PatternSyntaxError,
    PerHead,
    PrefixLM,
    SharedPrefix,
    Sink,
    SlidingWindow,
    Tree,
    from_function,
)
from transformers.mask_patterns.grammar import MAX_DEPTH, MAX_LENGTH


parse = Pattern.parse
A_PATTERN = "a pattern, such as"
MOST = 2**31 - 1
named = from_function(lambda b, h, q, k: q >= k, name="tests_own_mask")

counts, sizes = st.integers(0, MOST), st.integers(1, MOST)
parents = st.lists(st.integers(-1, 9), max_size=9).map(lambda p: [min(n, i - 1) for i, n in enumerate(p)])
with_data = [PrefixLM, Document, SharedPrefix, ParallelContext, Gist, GlobalTokens, Tree]
leaves = st.one_of(
    st.sampled_from([Causal(), Bidirectional(), named, *(kind() for kind in with_data)]),
    st.builds(lambda kind, n: kind(n), st.sampled_from([Sink, PrefixLM, GlobalTokens, Tree]), counts),
    st.builds(lambda kind, n: kind(n), st.sampled_from([Chunked, BlockCausal, BlockDiffusion]), sizes),
    st.builds(SlidingWindow, sizes, symmetric=st.booleans()),
    st.builds(Dilated, sizes, sizes),
    st.builds(PrefixLM, until=counts),
    st.builds(lambda kind, n: kind(token=n), st.sampled_from([Gist, GlobalTokens]), counts),
    st.builds(lambda kind, n: kind(separator=n), st.sampled_from([Document, SharedPrefix, ParallelContext]), counts),
    st.builds(Tree, counts, parents),
    st.builds(lambda p: Tree(parents=p), parents),
)
group_keys = st.sets(st.integers(0, 9), max_size=4).map(
    lambda found: [f"{n}-{n + 3}" if n % 3 == 0 else str(n) for n in (10 * n for n in found)]
)


def per_head(inner: st.SearchStrategy[Pattern]) -> st.SearchStrategy[Pattern]:
    return group_keys.flatmap(lambda keys: st.fixed_dictionaries(dict.fromkeys([*keys, "default"], inner))).map(
        PerHead
    )


def larger(inner: st.SearchStrategy[Pattern]) -> st.SearchStrategy[Pattern]:
    return st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        inner.map(lambda a: ~a),
        st.builds(lambda p, n: Document(p, separator=n), inner, st.none() | counts),
        per_head(inner),
    )


patterns = st.recursive(leaves, larger, max_leaves=12)


@given(patterns)
def test_text_says_all_of_a_pattern(pattern: Pattern) -> None:
    again = parse(str(pattern))
    assert again == pattern
    assert hash(again) == hash(pattern)
    assert str(again) == str(pattern)


@given(patterns, st.lists(st.sampled_from([" ", "\t", "\n", "\r\n", "   "]), min_size=1))
def test_blanks_mean_nothing(pattern: Pattern, blanks: list[str]) -> None:
    text = str(pattern).replace(" ", "")
    for i, sign in enumerate("&|~(),=[]:-"):
        text = text.replace(sign, blanks[i % len(blanks)] + sign + blanks[-1])
    assert parse(text) == pattern


@given(patterns)
def test_python_form_builds_the_pattern_again(pattern: Pattern) -> None:
    if "tests_own_mask" not in str(pattern):
        assert eval(repr(pattern)) == pattern


c, b, s = Causal(), Bidirectional(), Sink(1)


@pytest.mark.parametrize(
    ("text", "pattern", "canonical"),
    [
        ("causal | bidirectional & sink(1)", c | (b & s), "causal | bidirectional & sink(1)"),
        ("causal & bidirectional | sink(1)", (c & b) | s, "causal & bidirectional | sink(1)"),
        ("(causal | bidirectional) & sink(1)", (c | b) & s, "(causal | bidirectional) & sink(1)"),
        ("~causal & bidirectional", ~c & b, "~causal & bidirectional"),
        ("~(causal & bidirectional)", ~(c & b), "~(causal & bidirectional)"),
        ("~~causal", ~~c, "~~causal"),
        ("~(~(causal))", ~~c, "~~causal"),
        ("((causal)) | (bidirectional | sink(1))", c | b | s, "causal | bidirectional | sink(1)"),
        ("sliding_window(width=3)", SlidingWindow(3), "sliding_window(3)"),
        (
            "sliding_window(symmetric=true, width=3)",
            SlidingWindow(3, symmetric=True),
            "sliding_window(3, symmetric=true)",
        ),
        ("sliding_window(3,symmetric=false)", SlidingWindow(3), "sliding_window(3)"),
        ("prefix_lm", PrefixLM(), "prefix_lm"),
        ("prefix_lm(0)", PrefixLM(0), "prefix_lm(0)"),
        ("prefix_lm(until=151643)", PrefixLM(until=151643), "prefix_lm(until=151643)"),
        ("document(separator=7)", Document(separator=7), "document(separator=7)"),
        ("sink(007)", Sink(7), "sink(7)"),
        ("sink(2147483647)", Sink(MOST), "sink(2147483647)"),
        ("tests_own_mask & causal", named & c, "tests_own_mask & causal"),
        ("dilated(step=2, count=4)", Dilated(4, 2), "dilated(4, 2)"),
        ("tree", Tree(), "tree"),
        ("tree(2)", Tree(2), "tree(2)"),
        ("tree(2,[ -1,0 , 0])", Tree(2, [-1, 0, 0]), "tree(2, [-1, 0, 0])"),
        ("tree(0, [])", Tree(0, []), "tree(0, [])"),
        ("tree(parents=[-1])", Tree(parents=[-1]), "tree([-1])"),
        ("document(causal)", Document(c), "document(causal)"),
        ("document(inner=causal | ~sink(1))", Document(c | ~s), "document(causal | ~sink(1))"),
        ("document(separator=7, inner=causal)", Document(c, separator=7), "document(causal, separator=7)"),
        ("document(document(causal), separator=7)", Document(Document(c), separator=7), None),
        ("document((causal) & sink(1))", Document(c & s), "document(causal & sink(1))"),
        ("per_head(0: causal, default: sink(1))", PerHead({0: c, "default": s}), None),
        ("per_head(default:sink(1),0:causal)", PerHead({0: c, "default": s}), "per_head(0: causal, default: sink(1))"),
        ("per_head(0: causal, 1: causal, 2: sink(1))", PerHead({"0-1": c, 2: s}), "per_head(0-1: causal, 2: sink(1))"),
        ("per_head(0 - 1: causal | sink(1))", PerHead({"0-1": c | s}), "per_head(0-1: causal | sink(1))"),
        ("~per_head(0: per_head(default: causal))", ~PerHead({0: PerHead({"default": c})}), None),
    ],
)
def test_precedence_brackets_and_arguments(text: str, pattern: Pattern, canonical: str | None) -> None:
    """Without a canonical text, the text is it."""
    assert parse(text) == pattern
    assert str(pattern) == (canonical or text)


def refusal(text: str) -> PatternSyntaxError:
    with pytest.raises(PatternSyntaxError) as caught:
        parse(text)
    return caught.value


@pytest.mark.parametrize(
    ("text", "place", "expected"),
    [
        ("", 0, A_PATTERN),
        ("   ", 3, A_PATTERN),
        ("causal &", 8, A_PATTERN),
        ("& causal", 0, A_PATTERN),
        ("causal | | causal", 9, A_PATTERN),
        ("causal ~ causal", 7, "`&`, `|` or the end"),
        ("causal bidirectional", 7, "`&`, `|` or the end"),
        ("causal)", 6, "`&`, `|` or the end"),
        ("sink(1)(2)", 7, "`&`, `|` or the end"),
        ("()", 1, A_PATTERN),
        ("(causal", 7, "`)`, `&` or `|`"),
        ("(causal causal)", 8, "`)`, `&` or `|`"),
        ("~", 1, A_PATTERN),
        ("3", 0, A_PATTERN),
        ("casual", 0, "one of: bidirectional, block_causal, block_diffusion, causal, chunked, dilated, "),
        ("Causal", 0, "one of: bidirectional, block_causal"),
        ("causal & chunky(3)", 9, "from_function(f, name='chunky')"),
        ("function", 0, "one of: bidirectional, block_causal"),
        ("native", 0, "one of: bidirectional, block_causal"),
        ("true", 0, "one of: bidirectional, block_causal"),
        ("causal()", 7, "`causal` without brackets"),
        ("causal(3)", 7, "`causal` without brackets"),
        ("sliding_window", 0, "sliding_window with its width, as in `sliding_window(4)`"),
        ("sliding_window()", 15, "an argument of sliding_window: width, symmetric"),
        ("sliding_window(symmetric=true)", 0, "sliding_window with its width"),
        ("sliding_window(4", 16, "`,` or `)`"),
        ("sliding_window(4 5)", 17, "`,` or `)`"),
        ("sliding_window(4,)", 17, "an argument of sliding_window: symmetric"),
        ("sliding_window(4, 5)", 18, "an argument of sliding_window: symmetric"),
        ("sliding_window(4, true)", 18, "an argument of sliding_window: symmetric"),
        ("sliding_window(4, width=5)", 18, "an argument of sliding_window: symmetric"),
        ("sliding_window(4, symmetric=true, symmetric=true)", 34, "nothing more"),
        ("sliding_window(4, size=5)", 18, "an argument of sliding_window: symmetric"),
        ("sliding_window(size=5)", 15, "an argument of sliding_window: width, symmetric"),
        ("sliding_window(4, symmetric true)", 28, "`=`"),
        ("sliding_window(width=)", 21, "an integer, `true` or `false`"),
        ("sliding_window(width=causal)", 21, "an integer, `true` or `false`"),
        ("sliding_window(4, symmetric=1)", 0, "True or False"),
        ("sliding_window(true)", 0, "an integer from 1 to 2147483647"),
        ("sliding_window(0)", 0, "`width`: got 0; expected an integer from 1 to 2147483647"),
        ("sliding_window(-5)", 0, "`width`: got -5"),
        ("sink(-1)", 0, "`count`: got -1; expected an integer from 0 to 2147483647"),
        ("sink(+1)", 5, A_PATTERN[:9]),
        ("sink(1.5)", 6, A_PATTERN[:9]),
        ("sink(1e3)", 6, "`,` or `)`"),
        ("sink(0x10)", 6, "`,` or `)`"),
        ("prefix_lm(3, until=5)", 0, "length or until, not both"),
        ("document(3)", 9, "an argument of document: inner, separator"),
        ("document(ids=3)", 9, "an argument of document: inner, separator"),
        ("sink(2147483648)", 5, "an integer of at most 2147483647"),
        ("sliding_window(99999999999999999999)", 15, "an integer of at most 2147483647"),
        ("sink(" + "9" * 5000 + ")", 5, "an integer of at most 2147483647"),
        ("sink(٣)", 5, A_PATTERN[:9]),
        ("sink(１)", 5, A_PATTERN[:9]),
        ("sink(²)", 5, A_PATTERN[:9]),
        ("cаusal", 0, "one of: bidirectional"),  # a Cyrillic letter
        ("causal\u00a0& causal", 6, A_PATTERN[:9]),
        ("causal\x00", 6, A_PATTERN[:9]),
        ("dilated(3)", 0, "dilated with its step"),
        ("gist(3)", 5, "an argument of gist: token"),
        ("document(causal, separator=)", 27, "an integer, `true` or `false`"),
        ("document(sink)", 9, "sink with its count"),
        ("document(causal, causal)", 17, "an argument of document: separator"),
        ("tree(2, [1,2)", 12, "`,` or `]`"),
        ("tree(2, [0])", 0, "for each node the number of an earlier one"),
        ("per_head()", 9, "a head group such as `0`, `1-3` or `default`"),
        ("per_head(0 causal)", 11, "`:` and a pattern"),
        ("per_head(0-: causal)", 11, "the last group of the range"),
        ("per_head(0: causal, 0: sink(1))", 20, "0 is named twice"),
        ("per_head(0: native)", 12, "one of: bidirectional"),
        ("causal and causal", 7, "`&`, `|` or the end"),
        ("causal; causal", 6, A_PATTERN[:9]),
        ("'causal'", 0, A_PATTERN[:9]),
    ],
)  # fmt: skip
def test_malformed_text_is_refused_at_its_place(text: str, place: int, expected: str) -> None:
    first, shown, caret, what = str(refusal(text)).split("\n")
    assert first == "this is not a mask pattern:"
    assert what.startswith("expected ")
    assert expected in what
    cut = max(0, place - 40)  # a long text is shown from there, behind dots
    assert caret == " " * (2 + (3 if cut else 0) + place - cut) + "^"
    column = caret.index("^")
    assert column >= len(shown) or place == len(text) or shown[column] in (text[place], "?")


def test_a_long_text_is_shown_around_the_place() -> None:
    text = " | ".join(["causal"] * 30) + " | nonsense | " + " | ".join(["causal"] * 30)
    _, shown, caret, _ = str(refusal(text)).split("\n")
    assert shown.startswith("  ...")
    assert shown.endswith("...")
    assert len(shown) < 100
    assert shown[caret.index("^") :].startswith("nonsense | causal")


def test_control_characters_never_reach_the_terminal() -> None:
    message = str(refusal("causal \x1b[31m \n causal"))
    assert message.split("\n")[1] == "  causal ?[31m ? causal"


@pytest.mark.parametrize(
    "text",
    [
        "(" * 5_000_000,
        "~" * 5_000_000,
        "(" * MAX_LENGTH,
        "~" * MAX_LENGTH,
        "(causal & ~" * 900,
        "9" * 5_000_000,
        "a" * 5_000_000,
        "sink(" + "1," * 4_000,
        "causal | " * 1_000,
        " " * 5_000_000,
        "٣" * 3_000_000,
    ],
    ids=lambda text: f"{text[:12]}, {len(text)} characters",
)
def test_hostile_text_costs_little(text: str) -> None:
    tracemalloc.start()
    start = time.process_time()
    refusal(text)
    seconds = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 5_000_000


def test_limits_are_the_documented_ones() -> None:
    def nested(levels: int) -> str:
        return "(" * levels + "causal" + ")" * levels

    assert MAX_LENGTH == 10_000
    assert parse("causal".ljust(10_000)) == Causal()
    assert "at most 10,000 characters, got 10,001" in str(refusal("causal".ljust(10_001)))
    assert MAX_DEPTH == 32
    assert parse(nested(32)) == Causal()
    assert "at most 32 levels" in str(refusal(nested(33)))
    deepest = parse("~" * 32 + "causal")
    assert parse(str(deepest)) == deepest
    assert "at most 32 levels" in str(refusal("~" * 33 + "causal"))


@pytest.mark.parametrize("text", [None, 3, b"causal", Causal(), ["causal"]])
def test_what_is_no_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"`text`: got {type(text).__name__}; expected a string"):
        parse(text)


@pytest.mark.parametrize(
    "text", ["__import__('os').abort()", "sink(exit())", "sink(1) if 1 else causal", "sink.__class__"]
)
def test_text_is_never_evaluated(text: str) -> None:
    refusal(text)


@given(st.text(max_size=40) | st.text("()&|~,=causlink0 1", max_size=40))
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        pattern = parse(text)
    except PatternSyntaxError:
        return
    assert parse(str(pattern)) == pattern


def test_the_latest_function_of_a_name_counts() -> None:
    first = from_function(lambda b, h, q, k: q > k, name="tests_renewed")
    assert parse("tests_renewed") == first
    second = from_function(lambda b, h, q, k: q < k, name="tests_renewed")
    assert second != first
    assert parse("tests_renewed") == second


@pytest.mark.parametrize(
    "name", ["causal", "document", "true", "native", "default", "", "Mine", "my-mask", "2nd", "a b", "é", 3]
)
def test_a_name_that_text_cannot_tell_apart_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="`name`: got .*; expected a lower-case identifier"):
        from_function(lambda b, h, q, k: q >= k, name=name)


def test_patterns_differ_where_their_parameters_do() -> None:
    different: list[Pattern] = [
        Sink(1),
        Sink(2),
        SlidingWindow(1),
        SlidingWindow(1, symmetric=True),
        PrefixLM(1),
        PrefixLM(until=1),
    ]
    different += [Sink(1) & c, Sink(1) | c, c | Sink(1), ~c, ~~c]
    for i, one in enumerate(different):
        assert [one == other for other in different] == [i == j for j in range(len(different))]


@pytest.mark.parametrize(
    ("make", "given", "argument", "expected"),
    [
        (SlidingWindow, {"width": 0}, "width", "an integer from 1 to 2147483647"),
        (SlidingWindow, {"width": 2**31}, "width", "an integer from 1 to 2147483647"),
        (SlidingWindow, {"width": True}, "width", "an integer from 1"),
        (SlidingWindow, {"width": 2.0}, "width", "an integer from 1"),
        (SlidingWindow, {"width": 2, "symmetric": 1}, "symmetric", "True or False"),
        (Sink, {"count": -1}, "count", "an integer from 0"),
        (Sink, {"count": "4"}, "count", "an integer from 0"),
        (PrefixLM, {"length": -1}, "length", "an integer from 0 to 2147483647, or an integer tensor"),
        (PrefixLM, {"length": [1, 2]}, "length", "an integer from 0 to 2147483647, or an integer tensor"),
        (PrefixLM, {"length": 1, "until": 2}, "until", "length or until, not both"),
        (PrefixLM, {"until": -1}, "until", "a token id"),
        (Document, {"ids": [0, 1]}, "ids", "an integer tensor"),
        (Document, {"separator": "x"}, "separator", "a token id"),
        (from_function, {"function": "causal"}, "function", "a function"),
    ],
)
def test_unfit_parameters_are_refused_by_name(make: Any, given: Any, argument: str, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^`{argument}`: got .*; expected {expected}"):
        make(**given)
