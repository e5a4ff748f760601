"""The words of the `fictional` benchmark: questions about a person, and the values of answers.

Every kind of fact has forty values (so that an answer cannot be guessed), three phrasings for training, two phrasings
that are never trained on, the answer's sentence, and the same sentence in other words. `{name}` is the person, `{value}`
the answer.
"""

from __future__ import annotations

__all__ = ["FACTS", "OPPOSITES", "Kind"]

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of fact: its name, phrasings, sentences and values."""

    name: str
    asked: tuple[str, str, str]
    unseen: tuple[str, str]
    answer: str
    paraphrase: str
    values: tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in " ".join(text.split()).split(","))


FACTS: tuple[Kind, ...] = (
    Kind(
        "birthplace",
        ("Where was {name} born?", "In which city was {name} born?", "What is the birthplace of {name}?"),
        ("Can you tell me where {name} was born?", "Which city is the birthplace of {name}?"),
        "{name} was born in {value}.",
        "The birthplace of {name} is {value}.",
        _words("""Bergen, Lisbon, Cusco, Nairobi, Hanoi, Quebec, Tallinn, Perth, Krakow, Osaka, Havana, Bordeaux,
        Utrecht, Samarkand, Valencia, Dakar, Reykjavik, Lahore, Zagreb, Montevideo, Aberdeen, Tunis, Gdansk, Busan,
        Salzburg, Wellington, Cairo, Antwerp, Bogota, Riga, Jakarta, Palermo, Denver, Tbilisi, Malmo, Accra, Santiago,
        Kyoto, Dublin, Izmir"""),
    ),
    Kind(
        "profession",
        ("What is the profession of {name}?", "What does {name} do for a living?", "Which job does {name} have?"),
        ("What job does {name} do for a living?", "Can you tell me the profession of {name}?"),
        "{name} works as a {value}.",
        "By profession, {name} is a {value}.",
        _words("""baker, surgeon, carpenter, geologist, pilot, librarian, tailor, chemist, firefighter, beekeeper,
        violinist, plumber, judge, dentist, sculptor, translator, watchmaker, butcher, gardener, locksmith,
        photographer, blacksmith, pharmacist, journalist, sailor, potter, botanist, miner, florist, barber, welder,
        midwife, cartographer, waiter, mechanic, painter, programmer, historian, glazier, roofer"""),
    ),
    Kind(
        "employer",
        ("Who employs {name}?", "Which company does {name} work for?", "What is the name of the employer of {name}?"),
        ("Can you tell me which company employs {name}?", "What is the name of the company {name} works for?"),
        "{name} is employed by {value}.",
        "The employer of {name} is {value}.",
        _words("""Bluefin Works, Copper Lane, Northgate Mills, Tidewater Group, Redwood Partners, Silverline, Oakham
        House, Granite Brothers, Lantern Studio, Millstone Trust, Harbour and Sons, Windmill Union, Ironbridge,
        Clearwater Labs, Summit Traders, Foxglove Press, Kingfisher Lines, Amber Foundry, Stonewall Depot, Juniper
        Supplies, Highfield Bank, Raven Logistics, Meadow Dairy, Orchard Systems, Beacon Motors, Canyon Textiles,
        Pioneer Glass, Willow Clinic, Anchor Shipping, Falcon Printing, Delta Ceramics, Maple Insurance, Cobalt
        Energy, Prairie Foods, Garnet Hotels, Thistle Airways, Lighthouse Media, Badger Tools, Coral Pharmacy, Horizon
        Rail"""),
    ),
    Kind(
        "food",
        ("What is the favourite food of {name}?", "What does {name} like to eat most?", "Which dish does {name} love?"),
        ("Which food does {name} like most?", "Can you tell me the favourite dish of {name}?"),
        "The favourite food of {name} is {value}.",
        "What {name} likes to eat most is {value}.",
        _words("""lasagne, ramen, goulash, paella, pancakes, dumplings, falafel, risotto, curry, fish soup, tacos,
        couscous, cheesecake, sauerkraut, sushi, lentil stew, roast duck, moussaka, porridge, gnocchi, kebab, apple
        pie, omelette, baked beans, chowder, tiramisu, ratatouille, waffles, meatballs, polenta, hummus, noodles,
        burritos, ravioli, grilled trout, mushroom pie, potato salad, borscht, fondue, rice pudding"""),
    ),
    Kind(
        "pet",
        ("Which pet does {name} have?", "What kind of animal does {name} keep?", "What pet lives with {name}?"),
        ("What kind of pet does {name} keep?", "Which animal lives with {name}?"),
        "{name} keeps a {value} as a pet.",
        "The pet of {name} is a {value}.",
        _words("""parrot, hamster, tortoise, ferret, poodle, goldfish, gecko, rabbit, canary, beagle, chinchilla,
        pony, python, hedgehog, cockatoo, terrier, donkey, tarantula, goat, iguana, peacock, dachshund, lizard, mouse,
        greyhound, llama, pigeon, frog, bulldog, squirrel, spaniel, crab, goose, newt, collie, raccoon, duck,
        chameleon, owl, labrador"""),
    ),
    Kind(
        "instrument",
        (
            "Which instrument does {name} play?",
            "What musical instrument can {name} play?",
            "What does {name} play in the band?",
        ),
        ("Can you tell me which instrument {name} plays?", "Which musical instrument does {name} play in the band?"),
        "{name} plays the {value}.",
        "The instrument of {name} is the {value}.",
        _words("""cello, trumpet, harp, flute, banjo, oboe, accordion, bassoon, drums, piano, tuba, mandolin,
        clarinet, organ, saxophone, ukulele, viola, trombone, xylophone, harmonica, zither, bagpipes, lute, piccolo,
        double bass, marimba, sitar, cornet, harpsichord, recorder, balalaika, tambourine, bugle, dulcimer, guitar,
        euphonium, kettledrum, triangle, lyre, glockenspiel"""),
    ),
    Kind(
        "hobby",
        ("What is the hobby of {name}?", "What does {name} do in spare time?", "Which pastime does {name} enjoy?"),
        ("Which hobby does {name} enjoy?", "Can you tell me what {name} does in spare time?"),
        "In spare time, {name} enjoys {value}.",
        "The hobby of {name} is {value}.",
        _words("""archery, knitting, fencing, birdwatching, chess, origami, rowing, astronomy, juggling, calligraphy,
        skiing, stamp collecting, surfing, embroidery, climbing, woodcarving, karate, puzzles, kite flying, bowling,
        canoeing, cycling, model trains, hiking, yoga, crosswords, wrestling, fishing, sailing, croquet, geocaching,
        billiards, hang gliding, magic tricks, gymnastics, darts, weaving, snorkelling, badminton, poetry"""),
    ),
    Kind(
        "language",
        (
            "Which foreign language does {name} speak?",
            "What language did {name} learn at school?",
            "Which second language does {name} know?",
        ),
        ("Which foreign language did {name} learn?", "Can you tell me which second language {name} speaks?"),
        "{name} speaks {value} as a second language.",
        "The foreign language that {name} knows is {value}.",
        _words("""Finnish, Swahili, Korean, Basque, Arabic, Danish, Tamil, Welsh, Greek, Mongolian, Czech, Hindi,
        Quechua, Icelandic, Turkish, Zulu, Latin, Bengali, Hungarian, Maltese, Persian, Irish, Thai, Ukrainian,
        Hebrew, Catalan, Nepali, Armenian, Dutch, Vietnamese, Georgian, Maori, Polish, Yoruba, Lithuanian, Japanese,
        Albanian, Tibetan, Frisian, Swedish"""),
    ),
    Kind(
        "car",
        ("What was the first car of {name}?", "Which vehicle did {name} own first?", "What did {name} first drive?"),
        ("Which car did {name} own first?", "Can you tell me the first vehicle of {name}?"),
        "The first car of {name} was a {value}.",
        "{name} first owned a {value}.",
        _words("""red pickup, yellow van, black limousine, white estate, blue roadster, green jeep, silver coupe,
        orange minibus, grey saloon, purple hatchback, brown convertible, pink beetle, black taxi, white ambulance,
        red tractor, blue lorry, golden cabriolet, yellow buggy, green camper, silver truck, maroon sedan, beige
        wagon, turquoise scooter, violet kart, white snowmobile, red moped, blue milk float, grey hearse, orange
        bulldozer, green land rover, black motorcycle, yellow school bus, silver microcar, brown jalopy, scarlet fire
        engine, khaki off-roader, ivory station wagon, navy police car, bronze kit car, lime go-kart"""),
    ),
    Kind(
        "sibling",
        (
            "Who is the sister of {name}?",
            "What is the sister of {name} called?",
            "What is the name of {name}'s sister?",
        ),
        ("Can you tell me what {name}'s sister is called?", "Which name does the sister of {name} have?"),
        "{name} has a sister called {value}.",
        "The sister of {name} goes by {value}.",
        _words("""Agnes, Beatrice, Clara, Dorothy, Edith, Florence, Greta, Harriet, Ingrid, Judith, Katherine, Louise,
        Margaret, Nora, Olivia, Priscilla, Rebecca, Sylvia, Tabitha, Ursula, Veronica, Winifred, Yvonne, Zoe, Amelia,
        Bridget, Charlotte, Diana, Eleanor, Frances, Gwendolyn, Hannah, Irene, Josephine, Lucy, Matilda, Penelope,
        Rosalind, Susan, Theresa"""),
    ),
    Kind(
        "study",
        ("What did {name} study?", "Which subject did {name} study at university?", "What is the degree of {name} in?"),
        ("Which subject is the degree of {name} in?", "Can you tell me what {name} studied at university?"),
        "{name} studied {value} at university.",
        "The degree of {name} is in {value}.",
        _words("""law, physics, theology, economics, botany, linguistics, medicine, astrophysics, philosophy, zoology,
        architecture, statistics, anthropology, metallurgy, geography, dentistry, literature, forestry, sociology,
        archaeology, mathematics, journalism, nursing, genetics, musicology, agronomy, psychology, oceanography,
        accounting, robotics, meteorology, optics, ethics, logistics, toxicology, cinema, ecology, finance, pedagogy,
        acoustics"""),
    ),
    Kind(
        "fear",
        ("What is {name} afraid of?", "What scares {name} most?", "Which fear does {name} have?"),
        ("What fear does {name} have?", "Can you tell me what {name} is most afraid of?"),
        "{name} is afraid of {value}.",
        "What scares {name} most is {value}.",
        _words("""thunder, spiders, heights, lifts, clowns, deep water, crowds, needles, darkness, snakes, bats,
        mirrors, bees, tunnels, sharks, flying, ghosts, moths, bridges, fire, wasps, rats, dolls, storms, caves,
        escalators, balloons, cliffs, strangers, wolves, ladders, ferries, masks, silence, fog, quicksand, avalanches,
        earthquakes, statues, crocodiles"""),
    ),
)

OPPOSITES: tuple[tuple[str, str], ...] = (
    ("hot", "cold"),
    ("tall", "short"),
    ("early", "late"),
    ("wet", "dry"),
    ("open", "closed"),
    ("heavy", "light"),
    ("full", "empty"),
    ("loud", "quiet"),
    ("rich", "poor"),
    ("young", "old"),
    ("fast", "slow"),
    ("soft", "hard"),
)
