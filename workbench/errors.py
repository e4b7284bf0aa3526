"""What can go wrong because of what the user gave.

Each message says what was given, what was wanted and what to do.
"""


class WorkbenchError(Exception):
    """Any error that the user can mend."""


class DataError(WorkbenchError):
    """A fact file, a card or a report that is broken, incomplete or contradicts itself."""


class TargetError(WorkbenchError):
    """A target that the facts cannot give."""


class ModelError(WorkbenchError):
    """A model that cannot be loaded, or that does not fit what it is used with."""


class SiteError(WorkbenchError):
    """A site that the model does not have, or a hook that never fired."""


class SAEError(WorkbenchError):
    """A sparse autoencoder that cannot be loaded, or belongs to another model or site."""


class EditError(WorkbenchError):
    """An intervention that cannot be built, saved or applied as asked."""


class AuditError(WorkbenchError):
    """An audit that cannot be carried out on what was given."""
