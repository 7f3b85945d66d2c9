"""REST predict bodies of forms that came before: what is to be run is known, but for a text."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tf_infer.errors import ServingError
from tf_infer.server.contracts import Plan, Run, Signatures
from tf_infer.server.known_requests import MOST, SELDOM, SMALL_BYTES
from tf_infer.server.versions import ModelRef
from tf_infer.wire import body_form, messages


class KnownBody(NamedTuple):
    """Bodies of one form, for one model.

    Attributes:
        asked, ref: the model, as the route and as versions name it.
        form: of the bodies.
        signatures: of the version that was asked.
        plan: of one of them.
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

    def keep(self, asked: messages.ModelRef, ref: ModelRef, body: bytes, read: body_form.Read,
             signatures: Signatures, plan: Plan[Any]) -> None:
        """Remember, perhaps, the form of a body of which nothing is known.

        Args:
            asked, ref, signatures, plan: see `KnownBody`.
            body: of the request.
            read: see `body_form.form_of`.
        """
        self._others += 1
        if self._others % SELDOM != 1 or len(body) > SMALL_BYTES:
            return
        try:
            form = body_form.form_of(body, read)
        except ServingError:  # its caller is told by what reads it
            return
        if form is not None:
            self._known = (KnownBody(asked, ref, form, signatures, plan), *self._known)[:MOST]

    def forget(self, known: KnownBody) -> None:
        """Remember one form no more: the model has other signatures by now."""
        self._known = tuple(one for one in self._known if one is not known)
