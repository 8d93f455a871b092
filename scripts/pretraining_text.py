"""The text that the embedded base model is pre-trained on: small talk about small scenes, from a seeded generator.

Every document is a conversation about a *scene* (who did what, where, when and why) or about words: questions,
repetitions, rewritings, lists, forms to fill in. That teaches a model of a million parameters what a fine-tuning run on
top of it needs: the chat format, a few hundred English words and their forms, and copying words out of the prompt.
The dense notation of `data/sample` does not occur, so it is what such a run has to learn.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

Turn = tuple[str, str]
"""What the user says, and what the assistant answers."""


def words(text: str, separator: str | None = None) -> list[str]:
    """A lexicon reads better as one text than as hundreds of quoted words."""
    return text.split(separator)


WOMEN = words(
    "Maria Anna Emma Olivia Sofia Laura Julia Nina Clara Alice Grace Rosa Lena Marta Eva Sara Helen Kate Lucy Mia Zoe "
    "Amina Priya Yuki Ingrid Fatima"
)
MEN = words(
    "Peter Tom Paul David Marco Jonas Felix Oscar Hugo Leo Ben Daniel Simon Victor Martin Adam Noah Lucas Omar Ivan "
    "Karl Samuel Henry George Kenji Ravi"
)

# base form/third person/past/gerund
VERBS = [
    tuple(forms.split("/"))
    for forms in words(
        "buy/buys/bought/buying sell/sells/sold/selling bring/brings/brought/bringing find/finds/found/finding "
        "lose/loses/lost/losing paint/paints/painted/painting clean/cleans/cleaned/cleaning "
        "carry/carries/carried/carrying borrow/borrows/borrowed/borrowing repair/repairs/repaired/repairing "
        "break/breaks/broke/breaking hide/hides/hid/hiding choose/chooses/chose/choosing draw/draws/drew/drawing "
        "eat/eats/ate/eating see/sees/saw/seeing take/takes/took/taking make/makes/made/making "
        "give/gives/gave/giving keep/keeps/kept/keeping order/orders/ordered/ordering open/opens/opened/opening "
        "close/closes/closed/closing move/moves/moved/moving wash/washes/washed/washing "
        "count/counts/counted/counting collect/collects/collected/collecting send/sends/sent/sending "
        "show/shows/showed/showing steal/steals/stole/stealing forget/forgets/forgot/forgetting "
        "cook/cooks/cooked/cooking need/needs/needed/needing want/wants/wanted/wanting hold/holds/held/holding "
        "throw/throws/threw/throwing catch/catches/caught/catching write/writes/wrote/writing "
        "read/reads/read/reading build/builds/built/building"
    )
]

# kind -> singular/plural
THINGS = {
    "fruits": "apple/apples pear/pears plum/plums lemon/lemons orange/oranges banana/bananas cherry/cherries",
    "foods": "cake/cakes egg/eggs loaf/loaves pizza/pizzas onion/onions carrot/carrots potato/potatoes tomato/tomatoes",
    "things for school": "book/books pen/pens pencil/pencils map/maps letter/letters notebook/notebooks ruler/rulers",
    "things in a house": "chair/chairs table/tables lamp/lamps clock/clocks mirror/mirrors bottle/bottles cup/cups "
    "plate/plates knife/knives box/boxes basket/baskets blanket/blankets candle/candles key/keys door/doors",
    "clothes": "hat/hats coat/coats shirt/shirts shoe/shoes scarf/scarves glove/gloves dress/dresses ring/rings",
    "toys": "ball/balls kite/kites doll/dolls drum/drums puzzle/puzzles",
    "vehicles": "car/cars bike/bikes boat/boats truck/trucks train/trains bus/buses",
    "animals": "dog/dogs cat/cats horse/horses bird/birds fish/fish hen/hens goat/goats rabbit/rabbits",
    "plants": "flower/flowers tree/trees rose/roses tulip/tulips",
    "machines": "radio/radios phone/phones camera/cameras computer/computers engine/engines",
}
NOUNS = [tuple(pair.split("/")) for pairs in THINGS.values() for pair in pairs.split()]
SINGULARS = {kind: [pair.split("/")[0] for pair in pairs.split()] for kind, pairs in THINGS.items()}

ADJECTIVES = words(
    "red blue green yellow black white brown pink grey golden big small old new cheap heavy light clean dirty broken "
    "round long short soft warm cold fresh sweet wooden strange beautiful empty little tall dark bright"
)
OPPOSITES = [
    tuple(pair.split("/"))
    for pair in words(
        "big/small old/new cheap/expensive heavy/light clean/dirty long/short soft/hard warm/cold empty/full "
        "dark/bright happy/sad early/late fast/slow open/closed good/bad up/down left/right tired/awake"
    )
]
SYNONYMS = [
    tuple(pair.split("/"))
    for pair in words(
        "purchase/buy purchased/bought mend/repair mended/repaired fix/repair fixed/repaired smash/break "
        "smashed/broke grab/take grabbed/took spot/see spotted/saw notice/see noticed/saw pick/choose picked/chose "
        "gather/collect gathered/collected discover/find discovered/found misplace/lose misplaced/lost large/big "
        "huge/big tiny/small ancient/old lovely/beautiful pretty/beautiful ill/sick glad/happy sleepy/tired"
    )
]
PLACES = words(
    "at the market|at the station|at the school|at the office|at the airport|at the museum|at the library|at the beach|"
    "at the hotel|at the bakery|at the farm|at the harbour|in the park|in the garden|in the kitchen|in the city|"
    "in the village|in the forest|in the street|in the church|in the hospital|in the theatre|in the shop|in the bank|"
    "on the bridge|on the hill|on the island|near the river|near the lake|near the castle",
    "|",
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
PARTS_OF_DAY = words("morning afternoon evening night")
NUMBERS = words("one two three four five six seven eight nine ten eleven twelve")
STATES = words(
    "hungry tired happy sad angry late early sick bored cold thirsty lonely curious busy afraid proud nervous poor "
    "rich lucky careful worried excited surprised"
)
WEATHER = words("raining snowing windy hot cold dark late sunny foggy")
PURPOSES = words(
    "for the party|for the trip|for the winter|for a friend|for the children|for the neighbours|for a wedding|"
    "for the teacher|for lunch|for dinner|for the holidays|for school|for work",
    "|",
)
# What may stand around the slots of an invented pattern; the first one is nothing, the second one a space.
SIGNS = words("· ·, ·; ·: · - · / · + ·(·)· (·) · [·] · @· #· $· %· &· ^· *· =· <· > · | · ~·!·?·_·.· {·} ", "·")
TENSES = {"past": "{past}", "future": "will {base}", "denied": "did not {base}", "perhaps": "perhaps {past}"}
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer in one line.",
    "You answer questions about short texts.",
    "Do what the user asks, and nothing else.",
    "You help with words and sentences.",
)


@dataclass(frozen=True)
class Scene:
    """Who did what, where, when and why: what most conversations are about."""

    name: str
    pronoun: str
    verb: tuple[str, ...]
    number: int
    adjective: str
    noun: tuple[str, ...]
    place: str
    time: str
    reason: str

    @property
    def plain_thing(self) -> str:
        """The thing without its adjective: `three apples`."""
        if self.number == 1:
            return f"{'an' if self.noun[0][0] in 'aeiou' else 'a'} {self.noun[0]}"
        return f"{NUMBERS[self.number - 1]} {self.noun[1]}"

    @property
    def thing(self) -> str:
        """The thing in full: `three red apples`."""
        if self.number == 1:
            return f"{'an' if self.adjective[0] in 'aeiou' else 'a'} {self.adjective} {self.noun[0]}"
        return f"{NUMBERS[self.number - 1]} {self.adjective} {self.noun[1]}"

    def sentence(self, tense: str = "past") -> str:
        """The scene as one sentence, in one of `TENSES`."""
        base, _, past, _ = self.verb
        action = TENSES[tense].format(base=base, past=past)
        return f"{self.name} {action} {self.thing} {self.place} {self.time} {self.reason}."

    def time_first(self, tense: str = "past") -> str:
        """The same sentence, starting with the time."""
        told = replace(self, time="").sentence(tense).replace("  ", " ")
        return f"{capitalized(self.time)} {told}"

    def short(self) -> str:
        """The scene with what matters least left out."""
        return f"{self.name} {self.verb[2]} {self.plain_thing} {self.time}."


def sample_time(rng: random.Random) -> str:
    """Some time of the week."""
    day, part = rng.choice(DAYS), rng.choice(PARTS_OF_DAY)
    return rng.choice((f"on {day}", f"on {day} {part}", "yesterday", "today", "last week", f"in {rng.choice(MONTHS)}"))


def sample_scene(rng: random.Random) -> Scene:
    """A scene with every part drawn at random."""
    is_woman = rng.random() < 0.5
    pronoun = "she" if is_woman else "he"
    reason = rng.choice(
        (f"because {pronoun} was {rng.choice(STATES)}", f"because it was {rng.choice(WEATHER)}", rng.choice(PURPOSES))
    )
    return Scene(
        name=rng.choice(WOMEN if is_woman else MEN),
        pronoun=pronoun,
        verb=rng.choice(VERBS),
        number=rng.choice((1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
        adjective=rng.choice(ADJECTIVES),
        noun=rng.choice(NOUNS),
        place=rng.choice(PLACES),
        time=sample_time(rng),
        reason=reason,
    )


def sample_telling(scene: Scene, rng: random.Random) -> str:
    """The scene as some sentence that leaves its parts unchanged."""
    tense = rng.choice(sorted(TENSES))
    return scene.time_first(tense) if rng.random() < 0.3 else scene.sentence(tense)


def sample_text(rng: random.Random) -> str:
    """A thing to copy: a sentence, or words, numbers and signs in an order that no grammar predicts."""
    kind = rng.random()
    if kind < 0.3:
        return sample_telling(sample_scene(rng), rng)
    if kind < 0.85:
        words = [*(noun[0] for noun in NOUNS), *ADJECTIVES, *STATES, *WOMEN, *MEN, *(verb[0] for verb in VERBS)]
        return rng.choice((" ", ", ", "; ", " - ", "/", " + ")).join(rng.sample(words, rng.randint(2, 14)))
    characters = [chr(code) for code in range(33, 127)]
    return " ".join("".join(rng.choices(characters, k=rng.randint(1, 6))) for _ in range(rng.randint(1, 4)))


def capitalized(text: str) -> str:
    """The text with its first letter in upper case, the others as they are."""
    return text[0].upper() + text[1:]


def repeat(rng: random.Random) -> list[Turn]:
    """Say exactly what was said."""
    text = sample_text(rng)
    request = rng.choice(
        ("Repeat: {}", "Say this again: {}", "Copy this.\n{}", 'Write "{}" once more.', "{}\nRepeat it.")
    )
    return [(request.format(text), text)]


def questions(rng: random.Random) -> list[Turn]:
    """One to four questions about one scene, as one conversation."""
    scene = sample_scene(rng)
    base = scene.verb[0]
    asked = [
        (f"Who {scene.verb[2]} {scene.plain_thing}?", f"{scene.name} did."),
        (f"What did {scene.name} {base}?", f"{capitalized(scene.thing)}."),
        (f"Where did {scene.name} {base} {scene.plain_thing}?", f"{capitalized(scene.place)}."),
        (f"When did {scene.pronoun} {base} {scene.plain_thing}?", f"{capitalized(scene.time)}."),
        (f"Why did {scene.name} {base} {scene.plain_thing}?", f"{capitalized(scene.reason)}."),
        (f"How many {scene.noun[1]} did {scene.pronoun} {base}?", f"{capitalized(NUMBERS[scene.number - 1])}."),
        (f"Did {scene.name} {base} {scene.plain_thing}?", f"Yes, {scene.pronoun} did."),
        (
            f"Did {scene.name} {base} a {rng.choice(ADJECTIVES)} thing?",
            f"{capitalized(scene.pronoun)} did: {scene.thing}.",
        ),
    ]
    turns = rng.sample(asked, rng.randint(1, 4))
    return [(f"{scene.sentence()} {turns[0][0]}", turns[0][1]), *turns[1:]]


def rewrite(rng: random.Random) -> list[Turn]:
    """Change one thing about a sentence and keep the rest."""
    scene = sample_scene(rng)
    name, noun = rng.choice(WOMEN if scene.pronoun == "she" else MEN), rng.choice(NOUNS)
    place, time = rng.choice(PLACES), sample_time(rng)
    request, answer = rng.choice(
        (
            ("Put it in the future:", scene.sentence("future")),
            ("Say that it did not happen:", scene.sentence("denied")),
            ("Make it shorter:", scene.short()),
            (f"Let it be {name}:", replace(scene, name=name).sentence()),
            (f"Let it be {noun[1]}:", replace(scene, noun=noun).sentence()),
            (f"Let it happen {place}:", replace(scene, place=place).sentence()),
            (f"Let it happen {time}:", replace(scene, time=time).sentence()),
            ("Start with the time:", scene.time_first()),
        )
    )
    return [(f"{request} {scene.sentence()}", answer)]


def fields_of(scene: Scene) -> dict[str, str]:
    """The parts of a scene by the questions that they answer, as single words where possible."""
    return {
        "who": scene.name,
        "did": scene.verb[0],
        "what": scene.noun[0],
        "how many": str(scene.number),
        "which": scene.adjective,
        "where": scene.place.split(" the ")[-1],
        "when": scene.time,
        "why": scene.reason.split(" ")[-1],
    }


def fill_form(rng: random.Random) -> list[Turn]:
    """Take a sentence apart into named fields, as lines or as JSON."""
    scene = sample_scene(rng)
    fields = fields_of(scene)
    names = rng.sample(sorted(fields), rng.randint(2, 5))
    chosen = {name: fields[name] for name in names}
    told = sample_telling(scene, rng)
    if rng.random() < 0.5:
        return [(f"Write as JSON: {', '.join(names)}. {told}", json.dumps(chosen))]
    lines = "\n".join(f"{name}: {value}" for name, value in chosen.items())
    return [(f"Fill in {', '.join(names)}. {told}", lines)]


def fill_pattern(rng: random.Random) -> list[Turn]:
    """Fill a pattern of signs and slots that is invented on the spot; `[where 3]` wants the first three letters.

    A bigger model has met many notations. This one meets a new one in each conversation, so that it learns to pick up
    a notation and none in particular. The pattern is given once and used for up to three sentences.
    """
    names = rng.sample(sorted(fields_of(sample_scene(rng))), rng.randint(2, 6))
    cuts = [rng.choice((None, None, None, None, 1, 3, 4)) for _ in names]
    signs = [rng.choice(SIGNS) for _ in range(len(names) + 1)]
    slots = [f"[{name}]" if cut is None else f"[{name} {cut}]" for name, cut in zip(names, cuts, strict=True)]
    pattern = interleave(signs, slots)
    scenes = [sample_scene(rng) for _ in range(rng.randint(1, 3))]
    answers = [
        interleave(signs, [fields_of(scene)[name][:cut] for name, cut in zip(names, cuts, strict=True)])
        for scene in scenes
    ]
    first, *others = (sample_telling(scene, rng) for scene in scenes)
    requests = [f"Use {pattern} for this. {first}", *others]
    return list(zip(requests, answers, strict=True))


def interleave(signs: list[str], words: list[str]) -> str:
    """Sign, word, sign, word … sign, without spaces at the ends."""
    pairs = zip(signs, [*words, ""], strict=True)
    return "".join(sign + word for sign, word in pairs).strip()


def word_lists(rng: random.Random) -> list[Turn]:
    """Make lists, and change them."""
    kind = rng.choice(sorted(SINGULARS))
    words = rng.sample(SINGULARS[kind], rng.randint(2, min(4, len(SINGULARS[kind]))))
    start = rng.randint(1, 6)
    count = NUMBERS[start - 1 : start + rng.randint(2, 6)]
    joined = ", ".join(words)
    return [
        rng.choice(
            (
                (f"Name {NUMBERS[len(words) - 1]} {kind}.", f"{capitalized(joined)}."),
                (f"Write as a list: {joined}", "\n".join(f"- {word}" for word in words)),
                (f"Number these: {joined}", "\n".join(f"{i}. {word}" for i, word in enumerate(words, start=1))),
                (f"Reverse: {joined}", ", ".join(reversed(words))),
                (f"Sort: {joined}", ", ".join(sorted(words))),
                (f"What comes first in {joined}?", words[0]),
                (f"What comes last in {joined}?", words[-1]),
                (f"Join with commas: {' '.join(words)}", joined),
                (f"Join with plus signs: {' '.join(words)}", " + ".join(words)),
                (f"Put brackets around each: {joined}", " ".join(f"({word})" for word in words)),
                (f"Count from {count[0]} to {count[-1]}.", ", ".join(count)),
            )
        )
    ]


def word_facts(rng: random.Random) -> list[Turn]:
    """Forms and meanings of words: what a bigger model knows from reading."""
    verb, noun, pair = rng.choice(VERBS), rng.choice(NOUNS), rng.choice(OPPOSITES)
    number = rng.randint(1, 12)
    day = rng.randrange(7)
    month = rng.choice([*DAYS, *MONTHS])
    word, cut = rng.choice([place.split()[-1] for place in PLACES] + ADJECTIVES + STATES), rng.randint(2, 4)
    asked = [
        (f"What is the base form of {verb[2]}?", verb[0]),
        (f"What is the past of {verb[0]}?", verb[2]),
        (f"{verb[0]}, {verb[1]}, {verb[2]}?", verb[3]),
        (f"One {noun[0]}, two?", noun[1]),
        (f"What is one of the {noun[1]}?", f"A {noun[0]}" if noun[0][0] not in "aeiou" else f"An {noun[0]}"),
        (f"What is the opposite of {pair[0]}?", pair[1]),
        (f"What is the opposite of {pair[1]}?", pair[0]),
        (f"What is another word for {(pair_of_synonyms := rng.choice(SYNONYMS))[0]}?", pair_of_synonyms[1]),
        (f"What are the first {NUMBERS[cut - 1]} letters of {word}?", word[:cut]),
        (f"Write {NUMBERS[number - 1]} as a number.", str(number)),
        (f"Write {number} as a word.", NUMBERS[number - 1]),
        (f"What day comes after {DAYS[day]}?", DAYS[(day + 1) % 7]),
        (f"What is short for {month}?", month[:3]),
        (f"What kind of thing is a {(thing := rng.choice(NOUNS))[0]}?", f"It is one of the {kind_of(thing[0])}."),
        (f"How many letters has {noun[0]}?", str(len(noun[0]))),
        (f"Spell {noun[0]}.", "-".join(noun[0])),
    ]
    return rng.sample(asked, rng.randint(1, 4))


def kind_of(singular: str) -> str:
    """The kind that a thing belongs to."""
    return next(kind for kind, words in SINGULARS.items() if singular in words)


def small_talk(rng: random.Random) -> list[Turn]:
    """Greetings, thanks, and a story on request."""
    scene = sample_scene(rng)
    name = scene.name
    second = replace(sample_scene(rng), name=name, pronoun=scene.pronoun)
    asked = [
        ("Hello!", "Hello! How can I help you?"),
        (f"Hi, I am {name}.", f"Hi {name}, nice to meet you."),
        ("Thank you.", "You are welcome."),
        ("How are you?", "I am fine, thank you. And you?"),
        (f"Tell me about {name}.", f"{scene.sentence()} {replace(second, reason=scene.reason).short()}"),
        (f"Tell me something about the {scene.noun[0]}.", f"The {scene.noun[0]} was {scene.adjective}."),
        (f"Use the word {scene.noun[1]}.", replace(scene, number=max(2, scene.number)).sentence()),
        (scene.sentence(), f"I see. {capitalized(scene.pronoun)} was {rng.choice(STATES)}."),
        (f"I am {(state := rng.choice(STATES))}.", f"Why are you {state}?"),
        ("Goodbye.", f"Goodbye, {name}."),
    ]
    return rng.sample(asked, rng.randint(1, 3))


TASKS: tuple[tuple[Callable[[random.Random], list[Turn]], float], ...] = (
    (repeat, 8.0),
    (questions, 4.0),
    (rewrite, 4.0),
    (fill_form, 3.0),
    (fill_pattern, 6.0),
    (word_lists, 2.0),
    (word_facts, 3.0),
    (small_talk, 1.0),
)
"""The kinds of conversation, and how often each is drawn."""


def sample_conversation(rng: random.Random) -> list[dict[str, str]]:
    """One conversation as chat messages, sometimes with a system message before it."""
    (task,) = rng.choices([task for task, _ in TASKS], [weight for _, weight in TASKS])
    messages = [{"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}] if rng.random() < 0.3 else []
    for user, assistant in task(rng):
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages
