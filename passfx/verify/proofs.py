"""The proofs of one run of the passes, over all of its rounds."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from passfx.graph.editor import Certificate, Certify, Edit
from passfx.verify.repro import save_repro

TOTAL_TOLERANCE = 1e-8


@dataclass
class Proofs:
    """Certificates that know of each other.

    A rewrite whose certificate failed is not tried again in a later round, and the errors of all
    rewrites together stay below `TOTAL_TOLERANCE`.

    Attributes:
        certify: proves one rewrite.
        folder: where what is undone is saved, to be looked at; None for nowhere.
        spent: the sum of the errors so far.
    """

    certify: Certify
    folder: Path | None = None
    spent: float = 0.0
    _failed: dict[Hashable, Certificate] = field(default_factory=dict)
    _saved: set[Hashable] = field(default_factory=set)

    def of(self, pass_name: str) -> Certify:
        """The certificates of one pass."""
        return partial(self._prove, pass_name)

    def saver(self, pass_name: str) -> "partial[None]":
        """What the editor of one pass tells of every edit that it undoes."""
        return partial(self._save, pass_name)

    def _prove(self, pass_name: str, edit: Edit) -> Certificate:
        key = _key(pass_name, edit)
        if key in self._failed:
            return self._failed[key]
        certificate = self.certify(edit)
        total = self.spent + (certificate.error or 0.0)
        if certificate.failure is None and total > TOTAL_TOLERANCE:
            failure = f"with those of the rewrites before, its error adds up to {total:.1e}"
            certificate = Certificate(certificate.error, failure)
        if certificate.failure is None:
            self.spent = total
        else:
            self._failed[key] = certificate
        return certificate

    def _save(self, pass_name: str, edit: Edit, certificate: Certificate) -> None:
        key = _key(pass_name, edit)
        if self.folder is not None and key not in self._saved:
            self._saved.add(key)
            save_repro(self.folder, pass_name, edit, certificate)


def _key(pass_name: str, edit: Edit) -> Hashable:
    """What stays the same of an edit from one round to the next."""
    reads = {read.name for node in edit.match.nodes for read in node.all_input_nodes}
    return pass_name, edit.match.at.name, edit.match.what, frozenset(reads)
