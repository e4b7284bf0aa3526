"""What the page says beside the numbers: how to read each figure, and what codes stand for."""

from workbench.audit.verdict import RECOVERED_RHO

ACCESS = {
    "A0": "text in and out",
    "A1": "log-probabilities of answers",
    "A2": "reading activations",
    "A3": "changing activations, removing hooks",
    "A4": "training the weights",
}
PRIMARY = {
    "NOT_REMOVED": "The knowledge is there, and the edited model shows it when asked.",
    "SUPPRESSED": "The edited model shows less than it holds: the knowledge is hidden, not gone.",
    "INCONCLUSIVE": "This audit can tell neither that the knowledge is there nor that it is gone.",
}
FLAGS = {
    "weights_identical": "every parameter and buffer of the edited model is bitwise the original's",
}
OBJECTIVES = {
    "accuracy": "1 - |ρ| on training templates: no more, and no less, is left than in a gold",
    "generalizability": "1 - |ρ| on audit-only templates, which the edit never saw",
    "locality": "share of the golds' recall that is kept, mean over the sets of retained facts",
    "locality_worst_set": "the same for the set that suffers most",
}
READING = """
In every figure a role has one colour and one symbol. Original: the model before the edit. Edited:
the model under audit, and, if the edit is a hook, the same weights with the hook off. Gold: models
retrained without the target; what they score is what guessing well scores. Whiskers are 95 %
intervals from resampling entities; those of the gold mean run from the lowest lower to the highest
upper bound of any one gold. In figures of curves a band spans the lowest and the highest gold, and
roles are shifted sideways a little so that whiskers do not hide each other.
"""
CAPTIONS = {
    "residual": f"""
How much of the original's advantage over the golds is there under each kind of access: 0 as in a
model that never knew, 1 as in the original. The dotted line is at ρ = {RECOVERED_RHO:.2f}, from
which an endpoint can count as recovered. Read from the top, where a reader can only ask, to the
bottom, where they can train the weights: after a removal every endpoint would stay near 0. Grey
rings are endpoints that are not valid and decide nothing. A whisker that reaches the frame goes on
beyond it.
""",
    "recall": """
Recall of the forget facts that were held out for scoring. The edit may have been fitted on training
templates; audit-only templates were kept from it. Centred answers take away what an answer gains on
every prompt alike, so that a mere bias against some answers does not pass for forgetting. Bars far
below the golds are no success: knowing which answer to avoid is knowledge too.
""",
    "retained": """
Recall of everything that was to stay, on audit-only templates. Compare edited with gold and not
with the original alone: what a model that never knew also lacks is no harm done by the edit. An
edited interval to the left of the golds' is damage. The sets overlap.
""",
    "probe": """
Whether the answer can be read from the residual stream, at each depth, by a probe that was fitted
on other entities. Where the edited model stays with the original, the answer is still encoded at
that depth, whatever the model says. The probe can be trusted only where the original is high while
the golds and the model with shuffled weights are low. The ring marks the place that the endpoint in
Table 1 reads; it was chosen on the S fold, which is not scored here.
""",
    "relearning": """
Every model is fine-tuned on texts about half of the forget entities and asked about others, which
those texts never mention. Knowledge that was hidden comes back within few steps. What the golds
gain is taught by the attack itself, so only the gap between the edited model and the golds is
evidence. The endpoint in Table 1 is the area under these curves.
""",
    "tradeoff": """
The choice of the dose, on the S fold. A good dose lies where forget facts are low while the
retained kind that suffers most is still high. If matched random features forget as much as the
chosen ones, the features are not what matters. These points carry no intervals, and the scored
facts of the other figures had no say in the choice.
""",
}
