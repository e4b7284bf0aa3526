"""What the page says beside the numbers: how to read each figure, and what codes stand for."""

from workbench.audit.cost import MAX_LOSS
from workbench.audit.endpoints import DELTA, MAX_DELTA, RECOVERED_RHO

ACCESS = {
    "A0": "text in and out",
    "A1": "log-probabilities of answers",
    "A2": "reading activations",
    "A3": "changing activations, removing hooks",
    "A4": "training the weights",
}
SETS = {
    "N1": "same entity, other relation",
    "N2": "same relation, other entity",
    "N3": "same object, other relation",
    "N4": "same type of entity",
    "N5": "chain neighbours",
    "U": "unrelated",
    "R_te": "same relations, held-out fold",
}
PRIMARY = {
    "REMOVED": "As far as this battery can tell, the edited model is as one that never knew.",
    "SUPPRESSED": "The edited model shows less than it holds: the knowledge is hidden, not gone.",
    "DEGRADED": "The edited model lost what it was to keep; what it does not say means nothing.",
    "NOT_REMOVED": "The knowledge is there, and the edited model shows what it holds.",
    "INCONCLUSIVE": "This audit can tell neither that the knowledge is there nor that it is gone.",
}
FLAGS = {
    "weights_identical": "every parameter and buffer of the edited model is bitwise the original's",
    "ANTI_KNOWLEDGE": "answers are pushed below what guessing gives: one can read what to avoid",
    "PARTIAL": "most facts are gone, and some are still answered whole",
    "TRACE": "all within the margin, yet some interval of ρ lies above zero",
    "format_dependent": "one way of asking brings the knowledge back, another does not",
    "not_recovered_no_gold": "nothing was recovered, but without golds that shows no absence",
    "error_carries_concept": "the SAE's error, which edits of features leave alone, tells answers",
    "recomputed_downstream": "later layers build up again what the edit had taken away",
    "trigger_evasion": "some prompts go past the edit's trigger and are answered",
    "bypassed": "a stream of another scale, a copy or another number type goes past the edit",
    "over_steered": "answers are driven below guessing, where a lower dose would hide them too",
    "baked_differs": "the edit in the weights says something else than the hook",
    "REDERIVABLE": "a derived fact can still be put together by a chain of questions",
    "OVERREACH": "premises that were to stay are lost",
    "LOGIC_BROKEN": "reasoning of the same kind about other subjects fails",
}
CLAIMS = {
    "removal_from_weights": "removal from the weights",
    "output_suppression": "suppression of outputs",
    "retrain_indistinguishable": "indistinguishable from retraining (privacy)",
    "downstream_use": "safe in downstream use",
}
OBJECTIVES = {
    "accuracy": "1 - |ρ| of the best question",
    "generalizability": "1 - |ρ| of the way of asking that is farthest from the golds",
    "robustness": "1 - ρ of the strongest probe, relearning or perturbation",
    "locality": "share of the reference's recall that is kept, mean over sets",
    "locality_worst_set": "the same for the set that suffers most",
}
PROBES = {
    "P1": "ridge regression, fitted on other entities",
    "P2": "ridge regression, fitted with other forget facts",
    "P3": "network with one hidden layer, fitted on other entities",
    "P4": "attention over all tokens, fitted on other entities",
    "P5": "P1 as fitted on the original, unchanged",
}
SIGNALS = {
    "loss_nats": "loss",
    "reference_nats": "loss against the golds'",
    "min_k_nats": "Min-K%",
    "min_k_plus": "Min-K%++",
    "zlib_nats_per_byte": "loss per compressed byte",
}
TEXT = {
    "entropy2_bits": "entropy of pairs of tokens, bits",
    "entropy3_bits": "entropy of triples of tokens, bits",
    "repeat4": "share of repeated runs of four tokens",
    "refused": "share of retained questions refused",
}
ATTACKS = {
    "W1": "relearning other facts",
    "W2": "relearning these facts and fresh ones",
    "W3": "benign fine-tuning",
    "W4": "relearning other facts, low-rank adapters",
    "W5": "rounding of the weights",
    "W6": "pruning",
    "W7": "noise on the weights",
    "W8": "one direction of the stream",
    "W9": "soft prompts and latent vectors",
    "W9c": "W9 fitted on shuffled answers (control, decides nothing)",
    "W10": "prefix of tokens",
}
READING = """
In every figure a role has one colour and one symbol. Original: the model before the edit. Edited:
the model under audit; if the edit has hooks, the same weights with the hooks off as well, and if a
filter stands before it, what passes that filter. Gold: models retrained without the target; what
they score is what guessing well scores. Whiskers are 95 % intervals from resampling entities;
where rotations of the folds are pooled, their intervals add in squares, since each rotation scores
other entities. Whiskers of the golds' mean run from the lowest lower to the highest upper bound of
any one gold, and in figures of curves a green band spans the lowest and the highest gold. Roles are
shifted a little against each other so that whiskers do not hide one another.
"""
LEVELS = "; ".join(f"{level} {meaning}" for level, meaning in ACCESS.items())
NO_GOLDS = """
There are no golds here: in their place, ρ = 0 is what guessing by base rates gives, and no figure
can show what an attack teaches a model that never knew.
"""
CAPTIONS = {
    "pareto": """
Each edit once: to the right what was to stay is left as in a gold, upward what was to go is gone as
in a gold, at best under every attack (upper panel) or merely when asked (lower panel). Boxes are
95 % intervals. Models of known kind stand in the corners: a gold top right, the original bottom
right, random weights top left. The area under the front is 1 for a gold.
""",
    "endpoints": f"""
How much of the original's advantage over the golds is there under each kind of access: 0 as in
models that never knew, 1 as in the original. Thick bars are 90 %, thin ones 95 % intervals; one
that reaches the frame goes on beyond it. The confirmatory endpoints M1 to M6 stand first. Recovered
(star): above zero after Holm's adjustment and at least {RECOVERED_RHO:.2f}, the dotted line.
Equivalent (crossed square): the 90 % interval lies within the margin ±δ, the pale blue band, which
is {DELTA:.2f} or twice the spread of the golds, at most {MAX_DELTA:.2f}. Below guessing (triangle
that points left): what is pushed down can be read from the bottom. Plain squares are none of these.
Marks in dark blue are the weights with hooks off. The small green triangles are the gold band: each
gold measured as if it were the edited model, against the others. An endpoint that stands among them
shows nothing that they do not show. Grey rings cannot be used and decide nothing.
""",
    "access": f"""
Each mark is an endpoint that can be used, at the access that its reader must have, with its 95 %
interval; filled squares are confirmatory, open ones secondary, diamonds the weights with hooks off.
The best of each level is named. The dashed line is the best ρ with this access or less: hiding ends
at the level where an endpoint is above zero and reaches {RECOVERED_RHO:.2f} (dotted). After a
removal the line stays near 0 to the end. Levels: {LEVELS}. Users of a served model have A0 or A1;
from A2 on one needs its weights, which the deployer has, and everybody once they are published.
""",
    "recall-text": """
What users read, by way of asking: the edit may have been fitted on training templates (B1),
all other questions were kept from it. Read from row to row: knowledge that is hidden from one
question and shown to another has not been removed. Dots far left of the golds are no success:
knowing which answer to avoid is knowledge too. Ways that the original itself cannot answer are
dropped; the table says why.
""",
    "recall-raw": """
The same questions, answered by the candidate to which the model gives most probability: what a
reader of its logits sees behind a refusal, a filter or another way to begin an answer.
""",
    "recall-centred": """
The same choices, after taking away what each candidate gains on every prompt alike. A mere bias
against some answers lowers the dots of the figures above and leaves these where they were.
""",
    "probe-P1": """
Whether the answer can be read from the residual stream, at each depth, by a probe that was not
fitted on the entity asked about. Where the edited model stays with the original, the answer is
still encoded at that depth, whatever the model says. A probe can be trusted only where the original
is high while the golds and the models with random and with shuffled weights are low. Rings mark
places that the endpoint M3 reads; they were chosen on S and are scored on V.
""",
    "other probe": """
Another probe, read as P1 above. One that finds more than P1 does shows that the answer is there in
a form that P1 does not read.
""",
    "relearning": """
Every model is fine-tuned on texts about some forget entities (T) and asked about others (V), which
those texts never mention. What was hidden comes back within few steps. What the golds gain is
taught by the attack itself, so that only the shaded area, edited less gold, is evidence; the
original shows how much can be known at all after such training. The endpoint M4 is the area under
these curves, each model at the learning rate that suits it best on S.
""",
    "savings": """
Every model is taught the forget facts (the line of its role) and as many fresh facts that no model
ever saw (dotted, with open marks). A model that never knew learns both alike; one that knew learns
the forget facts faster, and the shaded area is what it saves. The endpoint M5 compares the savings
of the edited model with the golds'; how easily a model learns anything cancels out.
""",
    "retained": """
Recall of everything that was to stay, on audit-only templates. Compare edited with gold and not
with the original alone: what a model that never knew also lacks is no harm done by the edit. An
edited interval to the left of the golds' is damage. The sets overlap.
""",
    "tradeoff": """
The choice of the dose, on the S fold. A good dose lies where forget facts are low while the
retained kind that suffers most is still high. If matched random features forget as much as the
chosen ones, the features are not what matters. These points carry no intervals, and the scored
facts of the other figures had no say in the choice.
""",
}
NOTES = {
    "endpoints": """
The same measurement on original, edited and gold; ρ = (edited - gold) / (original - gold). Golds:
their mean, and below it each of them; without golds, what guessing gives. p: that ρ is not above
zero, after Holm's adjustment over the confirmatory endpoints; below it p TOST: that ρ is not within
the margin ±δ, by two one-sided tests.
MDE: the smallest excess over the golds that this measurement would find, in units of ρ.
Faithful: the AUC with which it told known models that know from such as never did.
""",
    "gates": """
Without all of them REMOVED cannot be given. A failed gate also takes away the endpoints that rest
on it.
""",
    "attacks": """
The original is the positive control, which shows that the attack does not merely destroy; golds are
the negative one: what they gain is taught by the attack, and only what the edited model shows
beyond it was in the model. Injection index: what the attack teaches golds, as a share of what the
original knows; above the limit, its endpoint is not used. Destructive: the attacked original loses
more than half of what it knew of retained facts.
""",
    "kept": f"""
Non-inferior: the lower bound of edited less reference stays above -{MAX_LOSS:.2f} on R_te and U.
""",
    "tail": """
Means hide single facts. Whole: hit in at least 80 % of its questions, by a fact that golds hit in
at most 20 %. Golds are held against the other golds.
""",
}
