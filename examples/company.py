"""A made-up shop that changed: last year's facts, which the base knows, and this year's, which the data sets teach.

About half of the facts changed. A model that learns this year's shop department by department has to keep what it
learned first, and the general skills that no data set trains.
"""

from dataclasses import dataclass
from random import Random

from examples.words import (
    ANSWERS,
    CITIES,
    DAYS,
    DEPOTS,
    FAREWELLS,
    GREETINGS,
    LINES,
    NAMES,
    ORDER_QUESTIONS,
    ORDERS,
    PRODUCTS,
    QUESTIONS,
    REQUESTS,
    VALUES,
)

Exchange = tuple[str, str]  # what the user says, what the assistant answers
Catalogue = dict[tuple[str, str], str]  # (article, property): value


@dataclass(frozen=True)
class Company:
    """What the departments know in one year."""

    team: dict[str, str]  # request: who takes it
    reply: dict[str, str]  # request: what we answer
    catalogue: Catalogue
    depot: dict[str, str]  # city: where it is served from


def draw_catalogue(rng: Random, avoid: Catalogue | None = None) -> Catalogue:
    """Three facts for each of 16 articles, every one other than in `avoid`."""
    return {
        (article, kind): rng.choice([value for value in values if not avoid or value != avoid[article, kind]])
        for article in (f"{line} {product}" for line, product in zip(LINES, PRODUCTS, strict=True))
        for kind, values in VALUES.items()
    }


def every_second(old: Catalogue, new: Catalogue) -> Catalogue:
    """`old` with every second fact taken from `new`."""
    return {key: new[key] if place % 2 else old[key] for place, key in enumerate(old)}


OLD_CATALOGUE = draw_catalogue(Random(1))

LAST_YEAR = Company(
    team={
        "a late parcel": "Logistics",
        "a wrong address": "Logistics",
        "a dead device": "Repairs",
        "a strange noise": "Repairs",
        "a double charge": "Billing",
        "a missing invoice": "Billing",
        "a refund": "Returns",
        "a wrong item": "Returns",
        "a login problem": "Accounts",
        "a new email": "Accounts",
        "a stock question": "Sales",
        "a bulk discount": "Sales",
    },
    reply={
        "a late parcel": "Sorry for the wait. We will trace your {product} today.",
        "a wrong address": "No problem. We will move your {product} to the new address.",
        "a dead device": "Sorry to hear that. Please send us a photo of the {product}.",
        "a strange noise": "Please switch off the {product}. A technician will call you.",
        "a double charge": "You are right. We will pay back the second amount for the {product}.",
        "a missing invoice": "We have sent the invoice for the {product} by post.",
        "a refund": "Please send the {product} back within 14 days.",
        "a wrong item": "Our mistake. The right {product} leaves tomorrow.",
        "a login problem": "Please reset your password to see the {product}.",
        "a new email": "Thank you. Your new email for the {product} is saved.",
        "a stock question": "The {product} will be back in spring.",
        "a bulk discount": "From ten pieces on, the {product} is 5 percent cheaper.",
    },
    catalogue=OLD_CATALOGUE,
    depot={city: DEPOTS[place % 5] for place, city in enumerate(CITIES)},
)

THIS_YEAR = Company(
    team={
        **LAST_YEAR.team,
        "a wrong address": "Sales",
        "a strange noise": "Returns",
        "a missing invoice": "Accounts",
        "a wrong item": "Logistics",
        "a new email": "Billing",
        "a stock question": "Repairs",
    },
    reply={
        **LAST_YEAR.reply,
        "a late parcel": "Sorry for the wait. We will replace your {product} today.",
        "a dead device": "Sorry to hear that. Please send us a video of the {product}.",
        "a missing invoice": "We have sent the invoice for the {product} by email.",
        "a refund": "Please send the {product} back within 30 days.",
        "a login problem": "Please change your password to see the {product}.",
        "a bulk discount": "From ten pieces on, the {product} is 8 percent cheaper.",
    },
    catalogue=every_second(OLD_CATALOGUE, draw_catalogue(Random(2), avoid=OLD_CATALOGUE)),
    depot={city: DEPOTS[(place + 2 * (place % 2)) % 5] for place, city in enumerate(CITIES)},
)


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def request(rng: Random) -> tuple[str, str, str]:
    """A customer's message, what it is about, and the product in it."""
    about, product = rng.choice(list(REQUESTS)), rng.choice(PRODUCTS)
    words = rng.choice(GREETINGS) + rng.choice(REQUESTS[about]).format(product=product)
    return sentence(words) + rng.choice(FAREWELLS), about, product


def order(rng: Random) -> tuple[str, dict[str, str]]:
    """An order as a sentence, and what is in it."""
    fields = {
        "name": rng.choice(NAMES),
        "city": rng.choice(CITIES),
        "count": str(rng.randint(2, 29)),
        "product": rng.choice(PRODUCTS),
        "day": rng.choice(DAYS),
    }
    return rng.choice(ORDERS).format(**fields), fields


def route(rng: Random, company: Company) -> Exchange:
    text, about, _ = request(rng)
    return f"Which team takes this request?\n{text}", f"This goes to {company.team[about]}."


def catalogue(rng: Random, company: Company) -> Exchange:
    article, kind = key = rng.choice(list(company.catalogue))
    question = rng.choice(GREETINGS) + rng.choice(QUESTIONS[kind]).format(article=article)
    return sentence(question), ANSWERS[kind].format(article=article, value=company.catalogue[key])


def orders(rng: Random, company: Company) -> Exchange:
    text, fields = order(rng)
    depot = company.depot[fields["city"]]
    return f"Fill in the order form.\n{text}", f"Item: {fields['product']} | City: {fields['city']} | Depot: {depot}"


def reply(rng: Random, company: Company) -> Exchange:
    text, about, product = request(rng)
    return f"Answer this customer.\n{text}", company.reply[about].format(product=product)


def general(rng: Random, company: Company) -> Exchange:
    """Skills that hold in any year: name the issue, find the customer, product or day of an order."""
    if rng.random() < 0.5:
        text, about, _ = request(rng)
        return f"What is this message about?\n{text}", f"It is about {about}."
    text, fields = order(rng)
    question, field = rng.choice(ORDER_QUESTIONS)
    return f"{question}\n{text}", fields[field]


DEPARTMENTS = {"route": route, "catalogue": catalogue, "orders": orders, "reply": reply}
