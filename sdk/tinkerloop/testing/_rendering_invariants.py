"""Invariants of examples and prompts: tokens, weights, spans, and control tokens (such as <|im_end|>)."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tinkerloop.errors import CheckFailedError, RenderError, ZeroWeightError
from tinkerloop.messages import ToolSpec
from tinkerloop.renderers import Part, Rendered, TrainOnWhat
from tinkerloop.testing._invariant import Subject, nfc, require, require_equal, sampled
from tinkerloop.testing.format_claims import DECLARED_TOOLS, REWRITTEN, check_claims, fitted
from tinkerloop.testing.message_strategies import BEGINNINGS

_ALL_REPLIES = "all_assistant_messages"


def claims_hold(subject: Subject) -> None:
    """Conversations that the format claims to express are rendered, and all others raise a `RenderError`."""
    check_claims(subject.renderer, subject.claims)


def prompt_is_a_prefix(subject: Subject) -> None:
    """The example begins with the prompt, and exactly the tokens after the prompt have weight."""
    messages, tools = subject.conversation(), subject.maybe_tools()
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = subject.prompt(messages[:i], tools=tools)
            example = subject.example(messages[: i + 1], tools=tools)
            subject.begins_with(example.tokens, prompt, f"the example does not begin with the prompt for reply {i}")
            require_equal(example.weights.dtype, np.float32, "the dtype of the weights")
            weighted = np.flatnonzero(example.weights).tolist()
            require_equal(weighted, list(range(len(prompt), len(example))), f"the tokens with weight in reply {i}")
            require_equal(set(example.weights[len(prompt) :].tolist()), {1.0}, "the weights after the prompt")


def a_prompt_for_any_role_is_a_prefix(subject: Subject) -> None:
    """The prompt for a turn of any role begins the conversation that goes on with a message of this role."""
    messages = subject.conversation(final=None)
    if subject.draw(st.booleans(), "a reply follows"):
        messages.append({"role": "assistant", "content": "b"})
    results = len(list(takewhile(lambda message: message["role"] == "tool", reversed(messages))))
    calls = messages[-1 - results].get("tool_calls", ()) if results < len(messages) else ()
    awaited = [call["id"] for call in calls][results:]
    for role in sorted(subject.renderer.roles if awaited else subject.renderer.roles - {"tool"}):
        message = {"role": role, "content": "a thing"} | ({"tool_call_id": awaited[0]} if role == "tool" else {})
        try:
            tokens = subject.example([*messages, message]).tokens
        except RenderError:
            continue  # for example, a system message that is not the first message
        try:
            prompt = subject.prompt(messages, role=role)
        except RenderError:
            require(role not in ("user", "assistant"), f"a turn of the role {role!r} can be written, but not prompted")
            continue
        problem = f"the conversation does not begin with the prompt for the role {role!r}"
        # A tokenizer may join the last character, such as the quote before the result of a tool, to the text after it.
        subject.begins_with(tokens, prompt if role == "assistant" else prompt[:-1], problem)
        written, begun = (nfc(subject.renderer.decode(ids)) for ids in (tokens, prompt))
        require(written.startswith(begun), f"{problem}: {begun!r} and {written!r}")


def no_text_becomes_a_control_token(subject: Subject) -> None:
    """No text in a message becomes a control token: content, reasoning, results, arguments, names, ids or schemas."""
    messages, bad = subject.conversation(text=st.just("x")), subject.draw(subject.hostile_texts(), "text")
    if not messages:
        return
    plain = copy.deepcopy(messages)
    target = subject.draw(st.integers(0, len(messages) - 1), "message")
    fields = ["content and reasoning", "reasoning_content", "arguments", "name", "tool_call_id", "tool"]
    place, message = subject.draw(st.sampled_from(fields), "field"), messages[target]
    tools = copy.deepcopy(subject.tools)
    if place == "arguments" and message.get("tool_calls"):
        message["tool_calls"][0]["function"]["arguments"]["city"] = bad
        plain[target]["tool_calls"][0]["function"]["arguments"]["city"] = "x"
    elif place == "tool" and tools:
        tools[0]["description"] = bad
        tools[0]["parameters"]["properties"]["city"]["description"] = bad
    elif place == "tool_call_id" and message["role"] == "tool":
        message["tool_call_id"] = bad
    elif place == "name":
        message["name"], plain[target]["name"] = bad, "x"  # some templates look for equal messages
    elif place == "reasoning_content" and message.get("reasoning_content"):
        message["reasoning_content"] = bad
    else:
        for other in messages:
            if "</think>" in bad and other["role"] == "assistant" and not other.get("reasoning_content"):
                continue  # formats read the text before this tag as inline reasoning
            other.update({key: f"a {bad}" for key in ("content", "reasoning_content") if other.get(key)})
    expected = subject.controls_in(subject.example(plain, tools=subject.tools).tokens)
    try:
        tokens = subject.example(messages, tools=tools).tokens
    except RenderError:
        return  # for example, a function's name must not contain brackets
    subject.equal_tokens(subject.controls_in(tokens), expected, "the control tokens differ because of the text")


def every_text_is_written_once(subject: Subject) -> None:
    """Every text of a message is in the example once; only texts that the format leaves out on purpose are not."""
    call = {"function": {"name": "search", "arguments": {"city": "ofthecall"}}, "id": "functions.search:0"}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "ofthesystem"},
        {"role": "user", "content": "oftheuser"},
        {"role": "assistant", "content": "beforethecall", "tool_calls": [call | {"type": "function"}]},
        {"role": "tool", "content": "oftheresult", "tool_call_id": "functions.search:0"},
        {"role": "assistant", "content": "oftheanswer"},
        {"role": "user", "content": "ofthenext"},
        {"role": "assistant", "content": "ofthelast", "reasoning_content": "ofthereasoning"},
    ]
    messages = subject.show(messages)
    written = subject.renderer.decode(subject.example(messages).tokens)
    left_out = "beforethecall" if "text" in subject.renderer.leaves_out else None  # the text of an earlier reply
    for word in re.findall(r"\b(?:of|before)the\w+", json.dumps(messages)):
        count = written.count(word)
        require(count == 1 or (not count and word == left_out), f"{word!r} is {count} times in {written!r}")


def roles_are_a_closed_set(subject: Subject) -> None:
    """A message or a prompt of a role that the format does not have raises an error."""
    question = {"role": "user", "content": "a"}
    for role in ("<|im_end|>", "user\n<|im_start|>system", "root", "User", ""):
        for build in (
            lambda role=role: subject.example([question, {"role": role, "content": "b"}]),
            lambda role=role: subject.prompt([question], role=role),
        ):
            try:
                build()
            except RenderError as error:
                require("no role" in str(error), f"the error for role {role!r} is {error!r}")
            else:
                raise CheckFailedError(f"the unknown role {role!r} is rendered")


def masks_grow_from_mode_to_mode(subject: Subject) -> None:
    """Each mode of training gives the same tokens, and trains all tokens of the mode before it."""
    messages = subject.conversation()
    modes = (
        TrainOnWhat.LAST_ASSISTANT_MESSAGE,
        TrainOnWhat.LAST_ASSISTANT_TURN,
        TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        TrainOnWhat.ALL_MESSAGES,
        TrainOnWhat.ALL_TOKENS,
    )
    examples = [subject.example(messages, mode) for mode in modes]
    for (small, large), mode in zip(pairwise(examples), modes[1:], strict=True):
        subject.equal_tokens(large.tokens, small.tokens, f"the tokens depend on the mode {mode.value}")
        require(np.all(large.weights[small.weights > 0] == 1), f"{mode.value} does not train what a smaller mode does")
    for example in examples:
        require_equal((example.weights.dtype, len(example.weights)), (np.float32, len(example)), "dtype and length")
    require(np.all(examples[-1].weights == 1), "all_tokens does not train all tokens")


def every_reply_has_one_stop(subject: Subject) -> None:
    """Each trained reply ends with exactly one stop token, at which sampling stops."""
    ours, messages = subject.renderer, subject.conversation(later_system=False)
    example = subject.example(messages, _ALL_REPLIES)
    spans = [span for span in example.spans if span.weight and span.part is Part.STOP]
    replies = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if ours.grammar.stop_texts:  # a token may contain the end of the reply and the start of the stop text
        for span in spans:
            text = ours.decode(example.tokens[span.start : span.stop])
            require(
                text and any(stop.endswith(text.lstrip("\n")) for stop in ours.grammar.stop_texts),
                f"reply {span.message} ends with {text!r}, and not with one of {ours.grammar.stop_texts}",
            )
        replies = [i for i in replies if i + 1 == len(messages) or messages[i + 1]["role"] == "user"]
    else:
        for span in spans:  # before the stop token, a format may write other control tokens that end the reply's text
            *before, token = example.tokens[span.start : span.stop]
            final = ours.has_extension_property or span.message + 1 == len(messages)
            # a format that rewrites history may end earlier replies with another of its control tokens
            stops = ours.get_stop_sequences() if final else [*ours.get_stop_sequences(), *ours._assembler.ids.values()]
            require(token in stops, f"reply {span.message} ends with {token} {ours.decode([token])!r}, not with a stop")
            others = subject.control.difference(ours.get_stop_sequences())
            require(others.issuperset(before), f"reply {span.message} has the tokens {before} before its stop token")
    require_equal(Counter(span.message for span in spans), Counter(replies), "the replies with a stop")


def marks_and_weights_of_messages_hold(subject: Subject) -> None:
    """Mode `customized` trains exactly the marked messages, with their weights."""
    messages = subject.conversation()
    marks = [subject.draw(st.booleans(), f"message {i} is trained") for i in range(len(messages))]
    marked = [{**m, "trainable": mark, "weight": 0.5} for m, mark in zip(messages, marks, strict=True)]
    if subject.renderer.disables_reasoning:
        marked = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in marked]
    example = subject.example(marked, "customized")
    require(set(example.weights.tolist()) <= {0.0, 0.5}, f"the weights are {set(example.weights.tolist())}")
    trained = set(example.message_index[example.weights > 0].tolist())
    require(trained <= {i for i, mark in enumerate(marks) if mark}, f"the messages {sorted(trained)} are trained")
    last = [{**m, "trainable": i + 1 == len(messages)} for i, m in enumerate(messages)]
    require_equal(subject.example(last, "customized"), subject.example(messages), "the example of the last message")


def training_nothing_is_refused(subject: Subject) -> None:
    """An example without weight raises an error, unless it is asked for."""
    messages = subject.conversation(final=None)
    if not messages or messages[-1]["role"] == "assistant":
        return
    try:
        subject.renderer.build_supervised_example(messages)
    except ZeroWeightError:
        require(not subject.example(messages).weights.any(), "a message that is no reply has weight")
    else:
        raise CheckFailedError("an example without a last reply is rendered without an error")


def part_weights_reach_their_parts(subject: Subject) -> None:
    """Factors for reasoning and tool calls multiply the weights of exactly these parts."""
    messages = subject.conversation(later_system=False)
    whole = subject.example(messages, _ALL_REPLIES)
    mixed = subject.example(messages, _ALL_REPLIES, part_weights={"reasoning": 0.25, "tool_call": 0.5})
    subject.equal_tokens(mixed.tokens, whole.tokens, "the tokens depend on the factors")
    factor = {Part.REASONING: 0.25, Part.TOOL_CALL: 0.5}
    expected = [w * factor.get(Part(p), 1.0) for w, p in zip(whole.weights.tolist(), whole.parts, strict=True)]
    require_equal(mixed.weights.tolist(), expected, "the weights with factors")


def every_token_has_one_span_and_message(subject: Subject) -> None:
    """Spans cover every token once, in the order of the messages; a message with text has tokens."""
    messages = subject.conversation()
    example = subject.example(messages)
    require_equal([s.start for s in example.spans], [0, *(s.stop for s in example.spans[:-1])], "the starts of spans")
    lengths = {len(example.tokens), len(example.message_index), len(example.parts), example.spans[-1].stop}
    require_equal(len(lengths), 1, f"the lengths {sorted(lengths)} of tokens, messages, parts and spans")
    order = [int(i) for i in example.message_index if i >= 0]
    for system in (True, False):  # formats may move system messages to the front, and nothing else
        alike = [i for i in order if (messages[i]["role"] == "system") is system]
        require_equal(alike, sorted(alike), "the messages of the tokens, in order")
    for i, message in enumerate(messages):
        text = message["content"].strip()
        if message["role"] in ("system", "user") and text and i not in order:
            require(_is_in_shared_tokens(subject, example, text), f"message {i} has text but no token")
    (chunk,) = example.model_input.chunks  # a conversation without images has one chunk
    require_equal(chunk.length, len(example.tokens), "the length of the only chunk")


def _is_in_shared_tokens(subject: Subject, example: Rendered, text: str) -> bool:
    """Return whether one token, or two, spell the text and characters of the format. They belong to no message."""
    tokens = [token if owner < 0 else None for token, owner in zip(example.tokens, example.message_index, strict=True)]
    spelled = {
        subject.renderer.decode([token for token in tokens[i : i + size] if token is not None])
        for i in range(len(tokens))
        for size in (1, 2)
    }
    return any(text in written and text != written for written in spelled)


def rendering_is_pure(subject: Subject) -> None:
    """Rendering changes no message, and is the same in copies and in threads."""
    messages, ours = subject.conversation(), subject.renderer
    before = copy.deepcopy(messages)
    example = subject.example(messages)
    require_equal(messages, before, "the messages after rendering")
    for twin in subject.twins():
        again = twin.build_supervised_example(messages, allow_zero_weight=True)
        subject.equal_tokens(again.tokens, example.tokens, "a copy of the renderer gives other tokens")
        require(again == example, "a copy of the renderer gives other spans or weights")
        require_equal(twin.fingerprint(), ours.fingerprint(), "the fingerprint of a copy")
    with ThreadPoolExecutor(4) as pool:
        alike = [other == example for other in pool.map(lambda _: subject.example(messages), range(4))]
    require(all(alike), "threads that render at the same time give other examples")


def truncation_trains_nothing_after_the_cut(subject: Subject) -> None:
    """A truncated datum has the first tokens of the example, with their weights."""
    messages, keep = subject.conversation(later_system=False), subject.draw(st.floats(0.1, 0.99), "share that is kept")
    example = subject.example(messages, "all_messages")
    length = max(2, int(len(example) * keep))
    if example.weights[1:length].any():
        datum = example.to_datum(max_length=length)
        subject.equal_tokens(datum.model_input.to_ints(), example.tokens[: length - 1], "the inputs of the datum")
        weights = datum.loss_fn_inputs["weights"].data
        require_equal(weights, example.weights[1:length].tolist(), "the weights of the datum")


def tools_in_a_prefix_equal_the_argument(subject: Subject) -> None:
    """Tools that a system message declares give the same tokens as the argument `tools`."""
    if not subject.claims.tools or "system" not in subject.claims.roles:
        return
    messages = subject.show([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])
    prefix = subject.renderer.create_conversation_prefix_with_tools(DECLARED_TOOLS)
    for mode in ("last_assistant_message", "all_messages"):
        tokens = subject.example([*prefix, *messages], mode).tokens
        subject.equal_tokens(tokens, subject.example(messages, mode, tools=DECLARED_TOOLS).tokens, "tools in a message")
    tokens = subject.prompt([*prefix, *messages[:1]])
    subject.equal_tokens(tokens, subject.prompt(messages[:1], tools=DECLARED_TOOLS), "tools in a message of a prompt")


def a_sequence_begins_once(subject: Subject) -> None:
    """Tokens that begin a sequence occur once in every rendering, and only there."""
    messages, ours = subject.conversation(), subject.renderer
    texts = {*BEGINNINGS, getattr(ours.tokenizer, "bos_token", None)} - {None, *ours.grammar.control}
    ids = {ours._encoder.id_of(text) for text in texts} - {None}
    can_declare = subject.tools and "system" in subject.claims.roles
    prefix = ours.create_conversation_prefix_with_tools(DECLARED_TOOLS, "s") if can_declare else []
    unled = messages[bool(messages) and messages[0]["role"] == "system" :]
    rendered = [
        subject.prompt(messages[:-1]),
        subject.prompt(messages[:-1], prefill="p"),
        subject.prompt([*prefix, *unled[:-1]]),
        subject.example(messages).tokens,
        subject.example(messages, tools=subject.tools).tokens,
        subject.example(messages, "all_tokens").to_datum(max_length=9).model_input.to_ints(),
    ]
    begun = [[(at, token) for at, token in enumerate(tokens) if token in ids] for tokens in rendered]
    require_equal([at for at, _ in begun[0]], list(range(len(begun[0]))), "the positions of beginning tokens")
    for found in begun:
        require_equal(found, begun[0], "the beginning tokens of another rendering")


def split_examples_train_each_reply_as_sampled(subject: Subject) -> None:
    """Split examples train every reply exactly once, after its own prompt."""
    messages, tools, ours = subject.conversation(later_system=False), subject.maybe_tools(), subject.renderer
    trained: dict[int, list[list[int]]] = defaultdict(list)
    for example in ours.build_supervised_examples(messages, _ALL_REPLIES, tools=tools):
        for i in sorted(set(example.message_index[example.weights > 0].tolist())):
            at = ((example.weights > 0) & (example.message_index == i)).nonzero()[0]
            prompt = subject.prompt(messages[:i], tools=tools)
            require_equal(at.tolist(), list(range(len(prompt), len(prompt) + len(at))), f"the positions of reply {i}")
            subject.begins_with(example.tokens, prompt, f"reply {i} does not follow its prompt")
            parts = set(example.parts[at].tolist())
            require(parts <= {Part.REASONING, Part.TEXT, Part.TOOL_CALL, Part.STOP}, f"trained parts: {parts}")
            trained[i].append(example.tokens[at[0] : at[-1] + 1])
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    expected = {i: [sampled(subject.example(messages[: i + 1], tools=tools))] for i in replies}
    require_equal(dict(trained), expected, "the trained tokens of each reply")


def extension_property_holds(subject: Subject) -> None:
    """A longer conversation begins with the tokens of a shorter one, if and only if the format says so."""
    ours = subject.renderer
    if not ours.has_extension_property:
        candidates = [fitted(messages, subject.claims) for messages in [*REWRITTEN, list(subject.claims.rewrites)]]
        require(
            any(messages and _is_rewritten(subject, messages) for messages in candidates),
            "the format says that it rewrites history (has_extension_property is False), but no known conversation is "
            "rewritten: override has_extension_property, or claim a conversation with `rewrites`",
        )
        return
    messages, tools = subject.conversation(later_system=False), subject.maybe_tools()
    whole = subject.example(messages, tools=tools).tokens
    for i, message in enumerate(messages[:-1]):
        if message["role"] == "assistant":
            shorter = subject.example(messages[: i + 1], tools=tools).tokens
            require(ours.decode(whole).startswith(ours.decode(shorter)), f"the text up to reply {i} changes in history")
            if not message["content"][:1].isspace():  # its newline may join that of the header, in history only
                subject.begins_with(whole, shorter, f"the tokens up to reply {i} change in history")


def _is_rewritten(subject: Subject, messages: list[dict[str, Any]]) -> bool:
    try:
        whole = subject.example(messages).tokens
        earlier = [i + 1 for i, m in enumerate(messages[:-1]) if m["role"] == "assistant"]
        shorter = [subject.example(messages[:end]).tokens for end in earlier]
    except RenderError:
        return False
    return any(whole[: len(tokens)] != tokens for tokens in shorter)


def images_are_counted_and_never_trained(subject: Subject) -> None:
    """An image takes as many positions as it has tokens, and none of them has weight."""
    if not subject.claims.images:
        return
    messages = subject.conversation(images=True)
    prompt = subject.renderer.build_generation_prompt(messages[:-1])
    example, last = subject.example(messages, "all_messages"), subject.example(messages)
    parts = [part for m in messages if isinstance(m["content"], list) for part in m["content"]]
    given = [part["image"] for part in parts if part["type"] == "image"]
    require_equal([getattr(chunk, "data", None) for _, chunk in example.images], given, "the images")
    trained = int(np.count_nonzero(last.weights))
    require_equal(prompt.length + trained, example.model_input.length, "the positions of the prompt and of the reply")
    for at, chunk in example.images:
        stop = at + chunk.length
        require(not example.weights[at:stop].any(), f"a position of the image at {at} has weight")
        require_equal(set(example.parts[at:stop].tolist()), {int(Part.IMAGE)}, f"the parts of the image at {at}")


def tokens_equal_the_template(subject: Subject) -> None:
    """Texts of examples and prompts equal those of the official chat template, and so do the ids."""
    if subject.template is None:
        return
    messages, tools, ours = subject.conversation(), subject.maybe_tools(), subject.renderer
    prompting = subject.draw(st.booleans(), "a prompt")
    while prompting and messages[-1]["role"] == "assistant":
        messages.pop()
    tokens = subject.prompt(messages, tools=tools) if prompting else subject.example(messages, tools=tools).tokens
    text = _official(subject, subject.template, messages, tools, prompting)
    tokenizer: Any = ours.tokenizer
    encode = partial(tokenizer.encode, add_special_tokens=False)
    if prompting:
        expected = encode(text)
    elif text.startswith(prompt := _official(subject, subject.template, messages[:-1], tools, True)):
        # A reply is encoded separately from its prompt, and an example ends with the stop token.
        stop, reply = ours.decode(tokens[-1:]), text[len(prompt) :]
        reply = reply[: reply.rindex(stop)] if stop in reply else reply.rstrip()
        expected = encode(prompt) + encode(reply + stop)
    elif nfc(text).rstrip() == nfc(ours.decode(tokens)).rstrip():
        return  # the template itself writes another text before the reply than in its prompt
    else:
        expected = encode(text)
    subject.equal_tokens(tokens, expected, "the tokens differ from those of the template")


def _official(
    subject: Subject, template: str, messages: list[dict[str, Any]], tools: list[ToolSpec] | None, prompting: bool
) -> str:
    """Return the text of the official template. If it rejects arguments of calls as objects, they are JSON texts."""
    tokenizer: Any = subject.renderer.tokenizer
    wrapped = [{"type": "function", "function": tool} for tool in tools] if tools else None
    options = {"chat_template": template, "tokenize": False, "add_generation_prompt": prompting}
    shown = json.loads(json.dumps(messages))
    try:
        try:
            return tokenizer.apply_chat_template(shown, tools=wrapped, **options, **subject.template_variables)
        except TypeError:
            for call in (call for message in shown for call in message.get("tool_calls", ())):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
            return tokenizer.apply_chat_template(shown, tools=wrapped, **options, **subject.template_variables)
    except Exception as error:
        raise CheckFailedError(f"the renderer accepts this conversation, but the template raises {error!r}") from error
