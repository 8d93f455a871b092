"""Write the sample data: `python data/sample/generate.py` makes train.jsonl, valid.jsonl and test.jsonl beside it.

Semantic compression in small: an English sentence goes in, a dense notation that keeps its meaning comes out.

    Anna did not purchase three huge lemons at the market on Monday because she was tired.
    !buy(Anna, 3 big lemon) @market ^Mon <tired

| notation | meaning | | notation | meaning |
|---|---|---|---|---|
| `do(who, what)` | it happened | | `@` | where |
| `!do(…)` | it did not happen | | `^` | when |
| `+do(…)` | it will happen | | `<` | the cause |
| `?do(…)` | perhaps it happened | | `=` | the purpose |
| `3`, `~`, nothing | three, some, a single one | | `&` | in company of |

Words are base forms, and synonyms become one word (`purchase` and `buy` are both `buy`). In the training split each
event is told in a few wordings that share one answer, so that a model learns what does not matter. In the others each
event is told once, and it is another one.

As in a real data set, several people wrote the answers. They agree on the meaning and differ in habits (how far they
shorten words, what they leave out, in which order they put place and time), and nobody keeps to a habit always. So
there is a part to be learned, and a part that can only be memorized: training on it for too long makes the validation
loss rise again.

The files come from the seed alone: the same bytes each time.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEED = 2025
SYSTEM_PROMPT = "Write it in dense notation."


@dataclass(frozen=True)
class Split:
    """How many events a split has, and in how many wordings each is told."""

    events: int
    wordings: int


SPLITS = {"train": Split(100, 3), "valid": Split(80, 1), "test": Split(80, 1)}


def words(text: str) -> list[str]:
    """A lexicon reads better as one text than as hundreds of quoted words."""
    return text.split()


WOMEN = words("Maria Anna Emma Olivia Sofia Laura Julia Nina Clara Alice")
MEN = words("Peter Paul David Marco Jonas Felix Oscar Hugo Daniel Simon")

# notation: base/past of each verb that means it
VERBS = {
    "buy": "buy/bought purchase/purchased",
    "sell": "sell/sold",
    "find": "find/found discover/discovered",
    "lose": "lose/lost misplace/misplaced",
    "repair": "repair/repaired mend/mended fix/fixed",
    "break": "break/broke smash/smashed",
    "clean": "clean/cleaned",
    "take": "take/took grab/grabbed",
    "bring": "bring/brought",
    "choose": "choose/chose pick/picked",
    "see": "see/saw notice/noticed spot/spotted",
    "collect": "collect/collected gather/gathered",
}
# singular: plural
NOUNS = {
    noun.rstrip("*"): f"{noun.rstrip('*')}{'es' if noun.endswith('*') else 's'}"
    for noun in words(
        "apple orange potato* letter notebook chair lamp mirror plate blanket shirt glove kite bike truck horse flower "
        "radio camera engine"
    )
}
# notation: each adjective that means it
ADJECTIVES = {
    "big": "big large huge",
    "old": "old ancient",
    "cheap": "cheap",
    "broken": "broken",
    "light": "light",
    "strange": "strange",
    "empty": "empty",
    "short": "short",
    "green": "green",
    "black": "black",
    "brown": "brown",
}
# notation: where
PLACES = {
    "market": "at the market",
    "school": "at the school",
    "airport": "at the airport",
    "library": "at the library",
    "hotel": "at the hotel",
    "harbour": "at the harbour",
    "kitchen": "in the kitchen",
    "forest": "in the forest",
    "church": "in the church",
    "theatre": "in the theatre",
    "island": "on the island",
    "castle": "near the castle",
}
# notation: when
DAYS = {day[:3]: f"on {day}" for day in words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")}
PAST_TIMES = {"-1d": "yesterday", "-1w": "last week", **DAYS}
FUTURE_TIMES = {"+1d": "tomorrow", "+1w": "next week", **DAYS}
NUMBERS = words("one two three four five six seven eight nine ten")
SOME = ("some", "several", "a few")
STATES = words("hungry tired angry bored lonely afraid proud worried")
# notation: what the weather was like
WEATHER = {"rain": "raining", "snow": "snowing", "wind": "windy", "fog": "foggy", "dark": "dark"}
PURPOSES = words("party winter wedding teacher")

# notation: how the verb says it
MOODS = {"": "{past}", "!": "did not {base}", "+": "will {base}", "?": "perhaps {past}"}
MOOD_WEIGHTS = (6, 2, 2, 1)


@dataclass(frozen=True)
class Reason:
    """Why something happened: its sign and word in the notation, and the words of the sentence."""

    sign: str
    word: str
    text: str


@dataclass(frozen=True)
class Event:
    """What a sentence says, in the words of the notation; a part that is not said is empty."""

    name: str
    mood: str
    verb: str
    count: int | None
    adjective: str
    noun: str
    company: str
    place: str
    time: str
    reason: Reason | None


@dataclass(frozen=True)
class Annotator:
    """Someone's habits in writing the notation."""

    letters: int
    """How many letters of a word are kept."""
    keeps_adjective: float
    """How often the adjective is thought worth keeping."""
    place_first: bool
    """Whether the place comes before the time."""
    initial: bool
    """Whether a person is only an initial."""


ANNOTATORS = (
    Annotator(letters=99, keeps_adjective=0.9, place_first=True, initial=False),
    Annotator(letters=4, keeps_adjective=0.8, place_first=True, initial=False),
    Annotator(letters=3, keeps_adjective=0.4, place_first=False, initial=True),
)
ANNOTATOR_WEIGHTS = (3, 2, 2)
LAPSES = 0.4
"""How often somebody writes a word as somebody else would."""


def sample_event(rng: random.Random) -> Event:
    """An event with every part drawn at random."""
    is_woman = rng.random() < 0.5
    name = rng.choice(WOMEN if is_woman else MEN)
    (mood,) = rng.choices(list(MOODS), MOOD_WEIGHTS)
    return Event(
        name=name,
        mood=mood,
        verb=rng.choice(list(VERBS)),
        count=rng.choice((1, 1, 1, 1, None, None, 2, 3, 4, 5, 6, 7, 8, 9, 10)),
        adjective=rng.choice([*ADJECTIVES, ""]),
        noun=rng.choice(list(NOUNS)),
        company=rng.choice([friend for friend in WOMEN + MEN if friend != name]) if rng.random() < 0.2 else "",
        place=rng.choice(list(PLACES)),
        time=rng.choice(list(FUTURE_TIMES if mood == "+" else PAST_TIMES)),
        reason=sample_reason("she" if is_woman else "he", "is" if mood == "+" else "was", rng),
    )


def sample_reason(pronoun: str, be: str, rng: random.Random) -> Reason | None:
    """Why: somebody's state, the weather, a purpose, or not said."""
    kind = rng.choice(("state", "state", "weather", "purpose", None))
    if kind == "state":
        state = rng.choice(STATES)
        return Reason("<", state, f"because {pronoun} {be} {state}")
    if kind == "weather":
        weather = rng.choice(list(WEATHER))
        return Reason("<", weather, f"because it {be} {WEATHER[weather]}")
    if kind == "purpose":
        purpose = rng.choice(PURPOSES)
        return Reason("=", purpose, f"for the {purpose}")
    return None


def capitalized(text: str) -> str:
    """The text with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def tell(event: Event, rng: random.Random) -> str:
    """The event in plain English: one of the wordings that it can have."""
    base, past = rng.choice(words(VERBS[event.verb])).split("/")
    place, time = PLACES[event.place], (PAST_TIMES | FUTURE_TIMES)[event.time]
    where_and_when = rng.choice(([place, time], [time, place], [place]))
    parts = [event.name, MOODS[event.mood].format(base=base, past=past), tell_thing(event, rng)]
    if event.company:
        parts.append(f"with {event.company}")
    parts += where_and_when
    if time not in where_and_when:
        parts.insert(0, capitalized(time))
    if event.reason:
        parts.append(event.reason.text)
    return " ".join(parts) + "."


def tell_thing(event: Event, rng: random.Random) -> str:
    """What it is about, with its number and its adjective: `three huge lemons`."""
    adjective = rng.choice(words(ADJECTIVES[event.adjective])) if event.adjective else ""
    if event.count == 1:
        thing = f"{adjective} {event.noun}".strip()
        return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"
    number = rng.choice(SOME) if event.count is None else NUMBERS[event.count - 1]
    return " ".join(word for word in (number, adjective, NOUNS[event.noun]) if word)


def annotate(event: Event, rng: random.Random) -> str:
    """The event in the notation, as one of the annotators happened to write it."""
    (annotator,) = rng.choices(ANNOTATORS, ANNOTATOR_WEIGHTS)

    def habits() -> Annotator:
        return rng.choice(ANNOTATORS) if rng.random() < LAPSES else annotator

    def shorten(word: str) -> str:
        return word[: habits().letters]

    def person(name: str) -> str:
        return name[0] if habits().initial else name

    number = "~" if event.count is None else str(event.count) if event.count > 1 else ""
    adjective = shorten(event.adjective) if rng.random() < annotator.keeps_adjective else ""
    thing = " ".join(word for word in (number, adjective, shorten(event.noun)) if word)
    parts = [f"{event.mood}{event.verb}({person(event.name)}, {thing})"]
    if event.company:
        parts.append(f"&{person(event.company)}")
    place, time = f"@{shorten(event.place)}", f"^{event.time}"
    parts += [place, time] if habits().place_first else [time, place]
    if event.reason:
        parts.append(f"{event.reason.sign}{shorten(event.reason.word)}")
    return " ".join(parts)


def sample_events(rng: random.Random) -> Iterator[Event]:
    """Events without end, none of them twice."""
    seen: set[Event] = set()
    while True:
        event = sample_event(rng)
        if event not in seen:
            seen.add(event)
            yield event


def sample_wordings(event: Event, count: int, rng: random.Random) -> list[str]:
    """That many different sentences that say the same; every event has at least three, by where its time stands."""
    wordings: dict[str, None] = {}
    while len(wordings) < count:
        wordings[tell(event, rng)] = None
    return list(wordings)


def conversation(sentence: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """One row of a chat file."""
    return {
        "messages": [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": sentence},
            {"role": "assistant", "content": answer},
        ]
    }


def write_splits(directory: Path) -> None:
    """Write a chat file for each split; no event is in two of them."""
    rng = random.Random(SEED)
    events = sample_events(rng)
    for name, split in SPLITS.items():
        rows = []
        for _ in range(split.events):
            event = next(events)
            answer = annotate(event, rng)
            rows += [conversation(sentence, answer) for sentence in sample_wordings(event, split.wordings, rng)]
        rng.shuffle(rows)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write_splits(Path(__file__).resolve().parent)
