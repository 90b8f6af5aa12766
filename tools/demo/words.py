"""The words that the demo corpus is made of: fixed lists, and made-up words without end."""

from __future__ import annotations

from random import Random


def _words(text: str) -> list[str]:
    return text.split()


def _pairs(text: str) -> dict[str, str]:
    split = (pair.partition(":") for pair in text.split())
    return {left: right for left, _, right in split}


NAMES = _words("""
Ada Adam Alan Alba Alex Alice Alma Amy Ana Anna Arlo Ava Axel Bart Bea Ben Bella Bo Boris Cara Carl
Carla Chloe Clara Cleo Cora Dan Dana Dario David Della Dora Edgar Edith Eli Elin Ella Elsa Emil Emma
Enzo Eric Erika Esther Eva Ezra Fay Felix Fiona Finn Flora Frank Freya Fritz Gail Gina Greta Gus
Hana Hank Hans Hazel Heidi Helen Henry Hugo Ida Igor Ines Ingrid Iris Isaac Ivan Ivy Jack Jade Jan
Jane Jonas Judith Julia June Karl Kate Kira Klara Kofi Kurt Lara Lars Laura Lea Lena Leo Liam Lily
Lina Linda Lola Lotte Louis Lucas Lucy Luna Maja Marc Maria Marta Max Maya Mia Mila Milo Mina Mona
Nadia Nell Nick Nico Nina Noah Nora Olga Oliver Omar Oscar Otto Owen Paul Paula Petra Pia Quinn
Ralph Rita Robin Rosa Ruben Rudi Ruth Sam Sara Selma Simon Sofia Stella Sven Tara Theo Tilda Tim
Tina Tom Uma Ursula Vera Victor Viola Walter Wanda Will Xenia Yara Yusuf Zara Zoe
""")
CITIES = _words("""
Accra Agra Amman Ankara Athens Bari Basel Bergen Berlin Bern Bonn Boston Bremen Cairo Chicago Cork
Dakar Delhi Denver Dover Dublin Durban Essen Galway Geneva Genoa Ghent Graz Hanoi Havana Houston
Izmir Kyoto Lagos Leeds Lima Linz Lisbon London Lyon Madrid Malmo Manila Miami Milan Minsk Munich
Nairobi Nantes Naples Nice Osaka Oslo Oxford Padua Paris Perth Pisa Porto Prague Quito Riga Rome
Rouen Salem Seoul Seville Sofia Sydney Tallinn Tokyo Toronto Trier Tunis Turin Utrecht Vienna Warsaw
Wien York Zagreb Zurich
""")
COLOURS = _words("""
red blue green yellow black white brown grey pink purple orange gold silver violet cyan teal
""")
SHADES = ("", "", "dark ", "pale ", "bright ", "deep ", "light ", "warm ", "soft ")
FOODS = _words("""
apples bacon beans bread butter cake carrots cheese cherries corn curry dumplings eggs figs fish
garlic grapes honey jam kale lemons lentils mango melon muffins noodles nuts oats olives onions
pasta peaches pears peas pie pizza plums porridge rice risotto salad soup spinach stew sushi tacos
toast tofu tomatoes waffles
""")
WORDS = _words("""
apple arm bag ball bank barn bath beach bed bell bench bike bird boat bone book box brick bridge
brush bus cable cake candle card castle chair chalk clock cloud coat coin comb cook cup desk dish
door drum dust ear earth engine face farm fence field film fire flag flame floor flute fork forest
frame frog game gate glass glove gold grass hall hammer hand harbour hat heart hill horn house ice
ink iron island jar jewel key kite knife ladder lake lamp leaf letter light lock map market mask
milk mirror moon music nail nest net night nose note ocean paint paper park path pen pencil phone
piano plane plant plate pocket pond queen radio rain ring river road rock roof room rope rose sail
salt sand school sea seed shelf ship shirt shoe sky smoke snow sock song spoon star stone storm
street sugar sun table tent ticket tool tower toy train tree truck vase wall watch water wave wheel
wind window wood yard
""")

OPPOSITES = _pairs("""
hot:cold big:small up:down fast:slow happy:sad old:new full:empty open:closed light:dark early:late
hard:soft high:low left:right rich:poor long:short strong:weak wet:dry loud:quiet near:far good:bad
thick:thin day:night first:last clean:dirty wide:narrow true:false in:out
""")
CAPITALS = _pairs("""
France:Paris Italy:Rome Spain:Madrid Germany:Berlin Norway:Oslo Japan:Tokyo Egypt:Cairo Peru:Lima
Cuba:Havana Greece:Athens Austria:Vienna Poland:Warsaw Ireland:Dublin Latvia:Riga Kenya:Nairobi
Portugal:Lisbon Turkey:Ankara Ghana:Accra
""")
SOUNDS = _pairs("""
cow:moo dog:woof cat:meow duck:quack sheep:baa pig:oink owl:hoot bee:buzz snake:hiss frog:ribbit
lion:roar mouse:squeak
""")
CATEGORIES = {
    "bird": _words("robin crow eagle duck owl swan gull finch"),
    "fish": _words("trout salmon shark tuna cod carp eel herring"),
    "fruit": _words("apple pear plum mango peach cherry lemon banana"),
    "tool": _words("hammer saw drill wrench spade chisel pliers rake"),
    "tree": _words("oak pine birch maple willow ash elm cedar"),
    "metal": _words("iron gold copper zinc silver tin lead nickel"),
    "flower": _words("rose tulip lily daisy poppy iris orchid violet"),
    "insect": _words("bee wasp ant moth beetle fly cricket flea"),
}

_ONSETS = _words("b c d f g h j k l m n p r s t v w z br cl dr fl gr kr pl pr sk sl sm sp st tr")
_VOWELS = _words("a e i o u")
_CODAS = ("", "", "", "l", "m", "n", "p", "r", "s", "t", "x", "k")


def made_up(rng: Random, shortest: int = 3, longest: int = 7) -> str:
    """A pronounceable lower-case word of `shortest` to `longest` letters that is likely in no dictionary."""
    while True:
        syllables = rng.randint(1, 3)
        word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables))
        if shortest <= len(word) <= longest:
            return word


def any_word(rng: Random, shortest: int = 3, longest: int = 7) -> str:
    """A dictionary word or a made-up one, of the given length."""
    if rng.random() < 0.3:
        fitting = [word for word in WORDS if shortest <= len(word) <= longest]
        if fitting:
            return rng.choice(fitting)
    return made_up(rng, shortest, longest)


def proper(rng: Random, known: list[str], made_up_share: float = 0.35) -> str:
    """A name out of `known`, or a made-up one, so that telling it back means copying and not choosing."""
    return made_up(rng, 3, 7).capitalize() if rng.random() < made_up_share else rng.choice(known)
