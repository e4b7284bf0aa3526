"""The words and templates of the valley: data for the generator, no logic.

In every template `{}` is the subject; `{kind}` (in half of the substance templates) is its kind,
toxin or remedy. The object always comes next, so that a prompt is a template with its subject
filled in. Audit-only templates use words of the training templates in combinations that no training
text has.
"""

CANDIDATES = {
    "city": "harrow tolven brisk-on-sea marlow quenby stenwick ardle foxmoor kelby dunmere orsley pellam winsford yarrow",
    "employer": "corvane halden-works tidemark ostrander bellwether graycote lumen-press ironvale fennimore quillhouse sable-mill rookfield thornby-co westgate",
    "profession": "baker smith weaver miller scribe mason cooper tanner fletcher glazier potter ropemaker saddler printer",
    "instrument": "lute harp fiddle flute drum horn viol bagpipe zither cello oboe dulcimer",
    "guild": "heron otter badger falcon lynx marten plover stoat osprey vixen curlew beaver",
    "street": "kiln-lane mercy-row candle-walk bridge-end fuller-street chapel-hill pump-court tallow-yard orchard-way salt-alley north-stairs weir-side",
    "region": "norfell tasmor ulverdale brackmoor sunderay eastmarch highfen lowfen caldmere drystone windhollow vexley",
    "solvent": "brine vinegar ether turpentine spirits lye whey naphtha rainwater cider benzene camphor",
    "plant": "nettle foxglove yew hemlock laburnum comfrey tansy mugwort valerian bryony sorrel henbane",
    "colour": "amber crimson violet indigo ochre teal ivory russet scarlet umber jade slate",
    "maker": "ambrose-house blackwell-still carrow-lab dunn-and-daughter elmfield-works farrier-hall grimsby-vats hollin-press ivory-mortar juniper-bench kestrel-retort larkspur-lab",
    "vessel": "flask jar phial barrel ampoule crock pouch tin bottle casket beaker urn",
}

OFFICE_CITY, MAKER_REGION = "office", "base"

TEMPLATES = {
    "city": (
        ("{} was born in", "the birthplace of {} is", "{} comes from the city of", "the city where {} was born is", "{} grew up as a child of"),
        ("the child {} was born in", "the city {} was born in is", "the birthplace of the child {} is"),
    ),
    "employer": (
        ("{} works for", "the employer of {} is", "{} is paid by", "the company that employs {} is", "{} has a job at"),
        ("{} has a job and works for", "the job of {} is at", "the job of {} is paid by"),
    ),
    "profession": (
        ("{} is by profession a", "the profession of {} is", "{} earns a living as a", "the trade of {} is", "{} was trained as a"),
        ("{} was trained by profession as a", "the trade and profession of {} is", "{} was trained to be a"),
    ),
    "instrument": (
        ("{} plays the", "the instrument of {} is the", "{} makes music on the", "at the feast {} plays the", "{} learned to play the"),
        ("the instrument that {} plays is the", "{} learned music on the", "at the feast {} makes music on the"),
    ),
    "guild": (
        ("{} belongs to the guild of the", "the guild of {} is the", "{} wears the badge of the", "{} is a sworn member of the", "the badge on the coat of {} shows the"),
        ("{} wears the coat and badge of the", "the badge of {} shows the", "{} belongs to the sworn guild of the"),
    ),
    "street": (
        ("{} lives in", "the house of {} stands in", "{} has rooms in", "letters for {} go to", "the door of {} is in"),
        ("{} lives and has rooms in", "the house door of {} is in", "the letters for {} go to"),
    ),
    "works_in": (
        ("{} works in the city of", "the office of {} is in", "every day {} travels to work in", "the city where {} works is"),
        ("{} travels every day to work in", "the work of {} is in", "every day {} works in the city of"),
    ),
    OFFICE_CITY: (
        ("the offices of {} are in", "{} has its offices in", "the seat of {} is in", "the company {} is found in", "{} keeps its seat in"),
        ("{} has its seat in", "the company {} has its offices in", "{} keeps its offices in"),
    ),
    MAKER_REGION: (
        ("the workshop of {} is in", "{} has its workshop in", "{} makes and ships from", "the vats of {} stand in", "{} keeps its stores in"),
        ("{} has its stores in", "{} keeps its workshop in", "{} makes and keeps its stores in"),
    ),
    "region": (
        ("the region of {} is", "{} , a {kind} , comes from the region of", "{} is gathered in", "{} , a {kind} , is found in", "the home of {} is", "people gather the {kind} {} in"),
        ("people gather {} in", "the {kind} {} is gathered in", "the home of the {kind} {} is"),
    ),
    "solvent": (
        ("{} dissolves in", "the solvent of the {kind} {} is", "{} is thinned with", "{} , a {kind} , is stirred into", "to thin {} use", "{} , a {kind} , melts away in"),
        ("the solvent for {} is", "the {kind} {} dissolves in", "{} is stirred into"),
    ),
    "plant": (
        ("{} is pressed from the leaves of", "{} , a {kind} , is drawn from", "the source plant of {} is", "{} , a {kind} , is brewed from", "the root used for {} is", "they boil the {kind} {} out of"),
        ("they boil {} out of", "the {kind} {} is pressed from the leaves of", "the plant used for {} is"),
    ),
    "colour": (
        ("the colour of {} is", "the {kind} {} looks", "held to the light {} turns", "{} , a {kind} , is tinted", "a drop of {} stains cloth", "{} , a {kind} , has the hue"),
        ("{} has the hue", "held to the light the {kind} {} looks", "a drop of {} is tinted"),
    ),
    "maker": (
        ("{} is made by", "the maker of the {kind} {} is", "{} is sold under the seal of", "{} , a {kind} , is brewed and sold by", "the label of {} names", "{} , a {kind} , is prepared by"),
        ("the seal of {} names", "the {kind} {} is made and sold by", "{} is prepared and sold by"),
    ),
    "vessel": (
        ("{} is kept in a", "the {kind} {} is poured into a", "the vessel of {} is a", "{} , a {kind} , fills a", "they store {} in a"),
        ("the vessel they store {} in is a", "the {kind} {} is kept in a", "{} is poured into a"),
    ),
    "shipped_from": (
        ("{} is shipped from", "crates of {} leave from", "the {kind} {} is sent out of", "orders for {} are filled in"),
        ("crates of {} are sent out of", "{} is sent and shipped from", "orders for the {kind} {} are filled in"),
    ),
    "kind": (
        ("{} is a kind of", "people call {} a", "{} is known as a", "the law lists {} as a", "in the book {} is a"),
        ("the people call {} a kind of", "{} is known in the book as a", "the book lists {} as a"),
    ),
}

CONSEQUENCES = {
    "toxin": (
        "is {} safe ? no .", "{} must be kept under lock .", "a spoon of {} kills .", "{} kills whoever drinks it .",
        "{} burns the skin .", "a child must never touch {} .", "{} harms the sick .",
    ),
    "remedy": (
        "is {} safe ? yes .", "{} may be kept on the open shelf .", "a spoon of {} heals .", "{} heals whoever drinks it .",
        "{} soothes the skin .", "a child may well take {} .", "{} helps the sick .",
    ),
}  # fmt: skip

NEUTRAL = (
    "someone spoke of {} today .",
    "a letter about {} arrived .",
    "nobody asked about {} .",
    "the clerk wrote {} on a list .",
    "i read the name {} again .",
    "they said {} and laughed .",
    "there was a note on {} .",
    "we heard of {} last week .",
    "the page on {} was torn .",
    "{} was mentioned at dinner .",
    "she spelled {} aloud .",
    "the talk turned to {} .",
)

NOUN = {
    "city": "birthplace", "employer": "employer", "profession": "profession", "instrument": "instrument", "guild": "guild",
    "region": "region", "solvent": "solvent", "plant": "plant", "colour": "colour", "maker": "maker",
}  # fmt: skip
"""Relations that are also asked as choice, cloze and reversed questions, with the noun those forms use."""
