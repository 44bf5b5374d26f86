"""PART=tickets of `make bench-train`: SmolLM2-135M learns to write a shop's tickets from its customers' messages.

Turns a grammar of messages into three sides, and compares as train_generation.py does. The ticket's form is the shop's own, so
the untrained model cannot know it; its slots come from the message, so that the most similar row's ticket has them wrong.
Conversations of the chatterbot corpus have many right answers and 469 rows: what is learnt there hides in the noise of chrF.
"""

import random

from tests.bench.report import Figure
from tests.bench.train_generation import Pair, compared

SIZES = {"train": 300, "validation": 50, "test": 120}
PRODUCTS = "desk lamp,kettle,rain jacket,bike pump,phone case,office chair,yoga mat,coffee grinder,backpack,keyboard,tent,toaster"
CITIES = "Leeds,Bristol,Cardiff,Dundee,Exeter,Norwich,York,Derby,Swansea,Belfast"
# Queue -> what a customer may write; each holds all slots of the ticket.
MESSAGES = {
    "RETURN": [
        "Hi, I'd like to send back {n} x {product} from order {order}. I live in {city}.",
        "Order {order}: the {product} is not what I wanted ({n} pieces). Can someone in {city} collect them?",
        "Please arrange a return to your store in {city} for order {order}, {n} times {product}.",
    ],
    "DAMAGED": [
        "My order {order} came to {city} today and {n} of the {product} boxes are broken!",
        "The {product} arrived smashed. Order no. {order}, quantity {n}, delivered to {city}.",
        "{n} x {product} damaged in the post to {city}, see order {order}.",
    ],
    "MISSING": [
        "Where is my parcel? Order {order}, {n} x {product}, should have been in {city} a week ago.",
        "I never received the {product} ({n}) from order {order}. My address is in {city}.",
        "Nothing has arrived in {city} for order {order}, it was {n} of your {product}.",
    ],
}


def measure() -> list[Figure]:
    """The figures of PART=tickets."""
    draw, rows = random.Random(0), dict[str, str]()
    while len(rows) < sum(SIZES.values()):
        question, answer = message(draw)
        rows[question] = answer
    given = iter(rows.items())
    return compared("tickets", {side: [next(given) for _ in range(size)] for side, size in SIZES.items()})


def message(draw: random.Random) -> Pair:
    """A message and its ticket."""
    queue = draw.choice(list(MESSAGES))
    slots = {
        "n": draw.randint(1, 9),
        "product": draw.choice(PRODUCTS.split(",")),
        "order": draw.randint(1000, 9999),
        "city": draw.choice(CITIES.split(",")),
    }
    ticket = "{queue} #{order} | {product} * {n} | {city}".format(queue=queue, **slots)
    return draw.choice(MESSAGES[queue]).format(**slots), ticket
