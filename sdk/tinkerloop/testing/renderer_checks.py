"""`check_renderer`: checks a renderer against the invariants that all chat formats of this package have.

    check_renderer(MyFormat(tokenizer))                              # all invariants

    @pytest.mark.parametrize("check", RENDERER_CHECKS)               # or each as a test of its own
    def test_my_format(check):
        check_renderer(MyFormat(tokenizer), only=check)

Conversations are drawn by hypothesis. The error of a check has the invariant as a sentence, the smallest conversation
that breaks it, and, where tokens differ, both token sequences side by side.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from unittest import SkipTest

from tinkerloop.errors import CheckFailedError, RenderError
from tinkerloop.extras import needs_extra
from tinkerloop.renderers import Renderer

with needs_extra("testing", "the check kit of renderers"):
    from hypothesis import HealthCheck, Phase, given, reject, settings
    from hypothesis import seed as draw_with_seed
    from hypothesis import strategies as st
    from hypothesis.errors import Unsatisfiable

from tinkerloop.testing import _episode_invariants as episodes
from tinkerloop.testing import _parsing_invariants as parsing
from tinkerloop.testing import _rendering_invariants as rendering
from tinkerloop.testing._invariant import Invariant, Subject, all_control_ids, shown
from tinkerloop.testing.format_claims import FormatClaims, probe_claims

_INVARIANTS: tuple[Invariant, ...] = (
    rendering.prompt_is_a_prefix,
    rendering.a_prompt_for_any_role_is_a_prefix,
    parsing.a_reply_parses_back,
    parsing.a_reply_keeps_its_text,
    parsing.tool_arguments_come_back,
    parsing.declared_arguments_come_back_exactly,
    parsing.messages_survive_openais_shape,
    parsing.parsing_never_raises,
    parsing.an_array_is_read_as_a_list,
    parsing.deltas_join_to_the_message,
    parsing.no_cut_shows_in_the_deltas,
    parsing.a_cut_inside_reasoning_is_reasoning,
    parsing.a_prefill_is_in_the_prompt_and_the_message,
    parsing.a_quoted_tag_is_text,
    rendering.no_text_becomes_a_control_token,
    rendering.every_text_is_written_once,
    rendering.roles_are_a_closed_set,
    rendering.masks_grow_from_mode_to_mode,
    rendering.every_reply_has_one_stop,
    rendering.marks_and_weights_of_messages_hold,
    rendering.training_nothing_is_refused,
    rendering.part_weights_reach_their_parts,
    rendering.every_token_has_one_span_and_message,
    rendering.rendering_is_pure,
    rendering.truncation_trains_nothing_after_the_cut,
    rendering.tools_in_a_prefix_equal_the_argument,
    rendering.a_sequence_begins_once,
    rendering.split_examples_train_each_reply_as_sampled,
    rendering.extension_property_holds,
    rendering.images_are_counted_and_never_trained,
    rendering.tokens_equal_the_template,
    episodes.an_episode_equals_the_rendered_conversation,
    episodes.any_sampled_ids_survive,
    episodes.what_cannot_follow_a_reply_is_refused,
    episodes.any_order_of_turns_keeps_the_samples,
    rendering.claims_hold,
)

RENDERER_CHECKS: Mapping[str, Invariant] = {invariant.__name__: invariant for invariant in _INVARIANTS}
"""Mapping from the name of each invariant to the function that checks it. Its docstring is the invariant."""


class MissingTemplateError(ValueError, SkipTest):
    """Error for a comparison with a chat template without the template.

    It is a SkipTest, so that pytest and unittest show a test for each of `RENDERER_CHECKS` as skipped, not as passed.
    """


def check_renderer(
    renderer: Renderer,
    template: str | None = None,
    examples: int = 100,
    *,
    only: str | None = None,
    claims: FormatClaims | None = None,
    template_variables: Mapping[str, Any] | None = None,
    may_refuse: bool = False,
    seed: int = 0,
    shrink: bool = True,
) -> None:
    """Check a renderer against all invariants, or against one.

    Args:
        renderer: the renderer, which is not changed. It needs a tokenizer with the control tokens of the format.
        template: the official chat template, with which the tokens are compared; None: they are not compared. The
            tokenizer must have `apply_chat_template`.
        examples: the number of conversations that are drawn for each invariant.
        only: the name of one invariant in `RENDERER_CHECKS`.
        claims: what the format expresses. None: what the renderer accepts, found out by `probe_claims`.
        template_variables: variables that `template` needs.
        may_refuse: True: a drawn conversation that raises a `RenderError` is replaced by another one. The renderer
            `template` needs this, because it rejects what it cannot prove. It is an error if all are rejected.
        seed: another number draws other conversations. Every run with one number draws the same ones.
        shrink: False: report the first conversation found, without the search for a smaller one.

    Raises:
        CheckFailedError: an invariant does not hold.
        ValueError: `only` is not the name of an invariant, or `template_variables` is given without `template`.
        MissingTemplateError: `only` is "tokens_equal_the_template", and there is no `template`.
    """
    if only is not None and only not in RENDERER_CHECKS:
        raise ValueError(f"unknown check {only!r}; expected one of {', '.join(RENDERER_CHECKS)}")
    if template is None and only == rendering.tokens_equal_the_template.__name__:
        raise MissingTemplateError(f"{only} compares with a chat template: pass its text as `template`")
    if template is None and template_variables is not None:
        raise ValueError("template_variables were given without a template: pass the text of the chat template, too")
    ours = copy.copy(renderer)
    ours.tags_in_replies = "text"  # texts of drawn conversations quote tags
    stated = probe_claims(renderer) if claims is None else claims
    control = all_control_ids(renderer)
    twins = functools.cache(lambda: (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)))
    subject_of = partial(Subject, ours, stated, template, template_variables or {}, control, twins)
    how = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),  # type: ignore[arg-type]
    )
    for name in RENDERER_CHECKS if only is None else (only,):
        _check(renderer.name, RENDERER_CHECKS[name], subject_of, how, may_refuse=may_refuse, seed=seed)


def _check(
    format_name: str,
    invariant: Invariant,
    subject_of: Callable[[st.DataObject, list[tuple[str, Any]]], Subject],
    how: settings,
    *,
    may_refuse: bool,
    seed: int,
) -> None:
    drawn: list[tuple[str, Any]] = []

    @draw_with_seed(seed)
    @how
    @given(data=st.data())
    def hold(data: st.DataObject) -> None:
        drawn.clear()
        try:
            invariant(subject_of(data, drawn))
        except RenderError:
            if not may_refuse:
                raise
            reject()

    try:
        hold()
    except Exception as error:
        sentence = (invariant.__doc__ or "").strip().splitlines()[0]
        problem = str(error) if isinstance(error, CheckFailedError) else repr(error)
        if isinstance(error, Unsatisfiable):
            problem = "it could not be checked, because the renderer rejects all drawn conversations, such as this one"
        values = "\n".join(shown(label, value) for label, value in drawn)
        raise CheckFailedError(
            f"the chat format {format_name} breaks the invariant {invariant.__name__}: {sentence}\n{problem}\n{values}"
        ) from error
