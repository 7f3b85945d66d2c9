"""REST predict bodies of forms that came before: what is to be run is known, but for a text."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from tf_infer.server.contracts import Plan, Run, Signatures
from tf_infer.server.known_requests import MOST, SELDOM, SMALL_BYTES
from tf_infer.server.versions import ModelRef
from tf_infer.wire import body_form, messages, rest


class KnownBody(NamedTuple):
    """Bodies of one form, for one model.

    Attributes:
        asked, ref: the model, as the route and as versions name it.
        form: of the bodies.
        signatures: of the version that was asked.
        plan: of one of them, without its inputs.
    """

    asked: messages.ModelRef
    ref: ModelRef
    form: body_form.BodyForm
    signatures: Signatures
    plan: Plan[Any]


class FoundBody(NamedTuple):
    """What is known of a body, and its input."""

    known: KnownBody
    array: np.ndarray

    def plan(self) -> Plan[Any]:
        """Return what to run, of a version with the signatures that are known."""
        (name, _, outputs), = self.known.plan.runs
        return Plan((Run(name, {self.known.form.name: self.array}, outputs),),
                    self.known.plan.finish)


class KnownBodies:
    """The last forms that came. May be used by several threads at once."""

    def __init__(self) -> None:
        self._known: tuple[KnownBody, ...] = ()
        self._others = 0

    def find(self, asked: messages.ModelRef, body: bytes) -> FoundBody | None:
        """Return what is known of a body; None where nothing is.

        Args:
            asked: the very object that a kept body came with.
            body: of the request.
        """
        for known in self._known:
            if known.asked is asked:
                array = known.form.array_in(body)
                if array is not None:
                    return FoundBody(known, array)
        return None

    def keep(self, asked: messages.ModelRef, ref: ModelRef, body: bytes, form: rest.Form,
             read: body_form.Read, signatures: Signatures, plan: Plan[Any]) -> None:
        """Remember, perhaps, the form of a body of which nothing is known.

        Args:
            asked, ref, signatures: see `KnownBody`.
            body: of the request.
            form, read: see `body_form.form_of`.
            plan: of the request.
        """
        self._others += 1
        if self._others % SELDOM != 1 or len(body) > SMALL_BYTES:
            return
        run, = plan.runs
        found = body_form.form_of(body, dict(run.inputs), form, read)
        if found is not None and _tells_nothing(found, run.signature):
            plan = replace(plan, runs=(run._replace(inputs={}),))
            self._known = (KnownBody(asked, ref, found, signatures, plan), *self._known)[:MOST]

    def forget(self, known: KnownBody) -> None:
        """Remember one form no more: the model has other signatures by now."""
        self._known = tuple(one for one in self._known if one is not known)


def _tells_nothing(form: body_form.BodyForm, signature: str) -> bool:
    """Return whether around its text a body has only names that are the model's or REST's own.

    It stays in memory, and whatever else a caller sends may be about a person.
    """
    names = (rest.SIGNATURE_NAME, rest.INSTANCES, rest.INPUTS, form.name, signature)
    own = b"|".join([re.escape(name.encode()) for name in names])
    return re.fullmatch(rb'(?:[][{}:,\s]|"(?:%s)")*' % own,
                        form.head[:-1] + form.tail[1:]) is not None
