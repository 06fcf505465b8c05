"""The words of a made-up shop, and the ways in which people say things to it."""

# ruff: noqa: SIM905 - a line of words is easier to read than a column of them

PRODUCTS = (
    "kettle toaster lamp fan heater blender mixer radio clock scale grill iron juicer steamer speaker vacuum"
).split()
LINES = "Nimbus Aero Alder Comet Dune Ember Fjord Harbor Iris Juno Koral Lumen Maple Orbit Pike Quill".split()
NAMES = (
    "Anna Boris Clara David Elif Frank Greta Hugo Ines Jonas Karin Leo Mira Nils Olga Pablo Rosa Sven Tara Viktor"
).split()
CITIES = "Oslo Lyon Porto Graz Turin Ghent Malmo Krakow Basel Bremen Cork Leeds Nantes Zagreb Tallinn Seville".split()
DEPOTS = "Hamburg Milan Madrid Vienna Paris".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday".split()

GREETINGS = ["", "", "hello, ", "hi, ", "good morning, ", "dear team, ", "excuse me, "]
FAREWELLS = ["", "", " Thanks!", " Please help.", " Kind regards.", " Best wishes."]

REQUESTS = {  # what it is about: how customers put it
    "a late parcel": [
        "my {product} has not arrived yet.",
        "where is the {product} I ordered last week?",
        "the tracking page of my {product} shows no movement.",
        "I am still waiting for the parcel with my {product}.",
        "the courier never came with the {product}.",
    ],
    "a wrong address": [
        "the {product} was sent to my old address.",
        "please change the delivery address of my {product}.",
        "I typed the wrong street for the {product}.",
        "the house number on my {product} order is not right.",
        "can you ship the {product} to my office instead?",
    ],
    "a dead device": [
        "my {product} does not start any more.",
        "the {product} stays dark when I press the button.",
        "the {product} stopped working after two days.",
        "nothing happens when I plug in the {product}.",
        "my {product} will not turn on.",
    ],
    "a strange noise": [
        "the {product} makes a loud noise.",
        "my {product} rattles when it is running.",
        "there is a buzzing sound from the {product}.",
        "the {product} squeaks all the time.",
        "I hear a clicking in my {product}.",
    ],
    "a double charge": [
        "I was charged twice for the {product}.",
        "my card shows two payments for one {product}.",
        "you took the money for the {product} two times.",
        "the amount for my {product} was booked again.",
        "there is a second payment for the same {product}.",
    ],
    "a missing invoice": [
        "I need the invoice for my {product}.",
        "there was no bill in the box of the {product}.",
        "please send me a receipt for the {product}.",
        "my tax office asks for the {product} invoice.",
        "I cannot find the bill of my {product}.",
    ],
    "a refund": [
        "I want my money back for the {product}.",
        "how do I send the {product} back?",
        "I do not like the {product} and want a refund.",
        "please take back the {product}.",
        "the {product} is not for me, can I return it?",
    ],
    "a wrong item": [
        "I got the wrong {product}.",
        "this is not the {product} that I chose.",
        "you sent me another {product} than I ordered.",
        "the colour of the {product} is not the one I picked.",
        "there was a different {product} in the box.",
    ],
    "a login problem": [
        "I cannot log in to rate my {product}.",
        "my password fails when I register the {product}.",
        "the site does not let me in to see my {product}.",
        "I am locked out and cannot add the {product}.",
        "the login code for my {product} page never comes.",
    ],
    "a new email": [
        "I have a new email for the {product} newsletter.",
        "please change my email before the {product} ships.",
        "the {product} mails go to my old mailbox.",
        "update my contact email for the {product} order.",
        "my mail address changed since I bought the {product}.",
    ],
    "a stock question": [
        "when will the {product} be back in stock?",
        "is the {product} sold out?",
        "do you have the {product} in your shop?",
        "how many of the {product} are left?",
        "can I reserve a {product} for next month?",
    ],
    "a bulk discount": [
        "we want to buy fifty {product} units for our hotel.",
        "is there a better price for ten {product} sets?",
        "our school needs a quote for the {product}.",
        "do you give a discount on a large {product} order?",
        "what does a box of twelve {product} units cost?",
    ],
}

ORDERS = [
    "{name} from {city} would like {count} {product} units by {day}.",
    "{name} calls from {city}: {count} {product} units, needed on {day}.",
    "Please send {count} {product} units to {name} in {city} before {day}.",
    "On {day} we ship {count} {product} units to {city}, for {name}.",
]
ORDER_QUESTIONS = [("Who is the customer?", "name"), ("Which product?", "product"), ("Which day?", "day")]

QUESTIONS = {  # property of an article: how people ask for it
    "warranty": [
        "how long is the warranty of the {article}?",
        "how many years of warranty does the {article} have?",
        "for how long is the {article} covered?",
        "tell me the warranty of the {article}.",
        "what warranty comes with the {article}?",
    ],
    "colour": [
        "which colour is the {article}?",
        "what colour does the {article} come in?",
        "tell me the colour of the {article}.",
        "in which colour is the {article} sold?",
        "what is the colour of the {article}?",
    ],
    "price": [
        "how much is the {article}?",
        "what does the {article} cost?",
        "tell me the price of the {article}.",
        "what is the price of the {article}?",
        "how many euros is the {article}?",
    ],
}
ANSWERS = {
    "warranty": "The {article} has {value} years of warranty.",
    "colour": "The {article} is {value}.",
    "price": "The {article} costs {value} euros.",
}
VALUES = {
    "warranty": [str(years) for years in range(2, 10)],
    "colour": "red blue green black white grey yellow orange pink brown".split(),
    "price": [str(euros) for euros in range(19, 99, 10)],
}
