"""The order of classes: which label a folder stands for, by name, number or WordNet ID."""

import re
import unicodedata
from collections import Counter

from ..system.errors import UserError

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
CIFAR100 = """
apple, aquarium_fish, baby, bear, beaver, bed, bee, beetle, bicycle, bottle, bowl, boy, bridge, bus, butterfly,
camel, can, castle, caterpillar, cattle, chair, chimpanzee, clock, cloud, cockroach, couch, crab, crocodile, cup,
dinosaur, dolphin, elephant, flatfish, forest, fox, girl, hamster, house, kangaroo, keyboard, lamp, lawn_mower,
leopard, lion, lizard, lobster, man, maple_tree, motorcycle, mountain, mouse, mushroom, oak_tree, orange, orchid,
otter, palm_tree, pear, pickup_truck, pine_tree, plain, plate, poppy, porcupine, possum, rabbit, raccoon, ray, road,
rocket, rose, sea, seal, shark, shrew, skunk, skyscraper, snail, snake, spider, squirrel, streetcar, sunflower,
sweet_pepper, table, tank, telephone, television, tiger, tractor, train, trout, tulip, turtle, wardrobe, whale,
willow_tree, wolf, woman, worm
"""
TINY_IMAGENET = """
01443537 goldfish, 01629819 European fire salamander, 01641577 bullfrog, 01644900 tailed frog, 01698640 American
alligator, 01742172 boa constrictor, 01768244 trilobite, 01770393 scorpion, 01774384 black widow, 01774750
tarantula, 01784675 centipede, 01855672 goose, 01882714 koala, 01910747 jellyfish, 01917289 brain coral, 01944390
snail, 01945685 slug, 01950731 sea slug, 01983481 American lobster, 01984695 spiny lobster, 02002724 black stork,
02056570 king penguin, 02058221 albatross, 02074367 dugong, 02085620 Chihuahua, 02094433 Yorkshire terrier, 02099601
golden retriever, 02099712 Labrador retriever, 02106662 German shepherd, 02113799 standard poodle, 02123045 tabby,
02123394 Persian cat, 02124075 Egyptian cat, 02125311 cougar, 02129165 lion, 02132136 brown bear, 02165456 ladybug,
02190166 fly, 02206856 bee, 02226429 grasshopper, 02231487 walking stick, 02233338 cockroach, 02236044 mantis,
02268443 dragonfly, 02279972 monarch, 02281406 sulphur butterfly, 02321529 sea cucumber, 02364673 guinea pig,
02395406 hog, 02403003 ox, 02410509 bison, 02415577 bighorn, 02423022 gazelle, 02437312 Arabian camel, 02480495
orangutan, 02481823 chimpanzee, 02486410 baboon, 02504458 African elephant, 02509815 lesser panda, 02666196 abacus,
02669723 academic gown, 02699494 altar, 02730930 apron, 02769748 backpack, 02788148 bannister, 02791270 barbershop,
02793495 barn, 02795169 barrel, 02802426 basketball, 02808440 bathtub, 02814533 beach wagon, 02814860 beacon,
02815834 beaker, 02823428 beer bottle, 02837789 bikini, 02841315 binoculars, 02843684 birdhouse, 02883205 bow tie,
02892201 brass, 02906734 broom, 02909870 bucket, 02917067 bullet train, 02927161 butcher shop, 02948072 candle,
02950826 cannon, 02963159 cardigan, 02977058 cash machine, 02988304 CD player, 02999410 chain, 03014705 chest,
03026506 Christmas stocking, 03042490 cliff dwelling, 03085013 computer keyboard, 03089624 confectionery, 03100240
convertible, 03126707 crane, 03160309 dam, 03179701 desk, 03201208 dining table, 03250847 drumstick, 03255030
dumbbell, 03355925 flagpole, 03388043 fountain, 03393912 freight car, 03400231 frying pan, 03404251 fur coat,
03424325 gasmask, 03444034 go-kart, 03447447 gondola, 03544143 hourglass, 03584254 iPod, 03599486 jinrikisha,
03617480 kimono, 03637318 lampshade, 03649909 lawn mower, 03662601 lifeboat, 03670208 limousine, 03706229 magnetic
compass, 03733131 maypole, 03763968 military uniform, 03770439 miniskirt, 03796401 moving van, 03804744 nail,
03814639 neck brace, 03837869 obelisk, 03838899 oboe, 03854065 organ, 03891332 parking meter, 03902125 pay-phone,
03930313 picket fence, 03937543 pill bottle, 03970156 plunger, 03976657 pole, 03977966 police van, 03980874 poncho,
03983396 pop bottle, 03992509 potter's wheel, 04008634 projectile, 04023962 punching bag, 04067472 reel, 04070727
refrigerator, 04074963 remote control, 04099969 rocking chair, 04118538 rugby ball, 04133789 sandal, 04146614 school
bus, 04149813 scoreboard, 04179913 sewing machine, 04251144 snorkel, 04254777 sock, 04259630 sombrero, 04265275
space heater, 04275548 spider web, 04285008 sports car, 04311004 steel arch bridge, 04328186 stopwatch, 04356056
sunglasses, 04366367 suspension bridge, 04371430 swimming trunks, 04376876 syringe, 04398044 teapot, 04399382 teddy,
04417672 thatch, 04456115 torch, 04465501 tractor, 04486054 triumphal arch, 04487081 trolleybus, 04501370 turnstile,
04507155 umbrella, 04532106 vestment, 04532670 viaduct, 04540053 volleyball, 04560804 water jug, 04562935 water
tower, 04596742 wok, 04597913 wooden spoon, 06596364 comic book, 07579787 plate, 07583066 guacamole, 07614500 ice
cream, 07615774 ice lolly, 07695742 pretzel, 07711569 mashed potato, 07715103 cauliflower, 07720875 bell pepper,
07734744 mushroom, 07747607 orange, 07749582 lemon, 07753592 banana, 07768694 pomegranate, 07871810 meat loaf,
07873807 pizza, 07875152 potpie, 07920052 espresso, 09193705 alp, 09246464 cliff, 09256479 coral reef, 09332890
lakeside, 09428293 seashore, 12267677 acorn
"""  # WordNet ID without its n, and the first name in words.txt
_DIGITS = dict(enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]))
_TINY = [entry.split(maxsplit=1) for entry in " ".join(TINY_IMAGENET.split()).split(", ")]

NAMES = {  # in the order of the published labels
    "digits": [str(digit) for digit in range(10)],
    "MNIST": [f"{digit} - {word}" for digit, word in _DIGITS.items()],
    "FashionMNIST": FASHION,
    "SVHN": [str(digit) for digit in range(10)],
    "CIFAR10": CIFAR10,
    "CIFAR100": " ".join(CIFAR100.split()).split(", "),
    "TinyImageNet": [name for _, name in _TINY],
}
ALSO = {  # other usual spellings; {label: names}
    "digits": _DIGITS,
    "MNIST": {label: f"{label} {word}" for label, word in _DIGITS.items()},
    "SVHN": _DIGITS | {0: "zero 10"},
    "FashionMNIST": {0: "tshirt top tshirts tee tshirtandtop", 1: "pants", 2: "sweater", 9: "boot"},
    "CIFAR10": {0: "aeroplane plane n02691156", 1: "car auto n02958343", 2: "n01503061", 3: "n02121620 n02121808",
                4: "n02430045", 5: "n02084071", 6: "n01639765", 7: "n02374451", 8: "n04194289", 9: "n04490091"},
    "CIFAR100": {26: "cra", 39: "computerkeyboard", 47: "maple", 48: "motorbike", 52: "oak", 56: "palm", 59: "pine",
                 64: "opossum", 83: "pepper", 96: "willow"},
    "TinyImageNet": {label: f"n{wnid}" for label, (wnid, _) in enumerate(_TINY)},
}


def tiny_names() -> dict[str, str]:
    """Tiny-ImageNet's WordNet IDs and the names of their classes."""
    return {f"n{wnid}": name for wnid, name in _TINY}


def composed(name: str) -> str:
    """A name in the one form of Unicode in which names that look alike are the same."""
    return unicodedata.normalize("NFC", name)


def letters(name: str) -> str:
    """What a name is compared by: no capitals, blanks or signs."""
    return "".join(sign for sign in unicodedata.normalize("NFKC", name).casefold() if sign.isalnum())


def numbers(folders: list[str]) -> dict[str, int] | None:
    """The number in each name, where all are a number behind the same letters (7, 00007, class_7); else None."""
    found = [re.fullmatch(r"(.*?)([0-9]{1,9})", name) for name in folders]
    if not all(found) or len({match[1] for match in found}) != 1:
        return None
    return {name: int(match[2]) for name, match in zip(folders, found, strict=True)}


def own(folders: list[str]) -> list[str]:
    """Folder names in the order of their labels, where no publication says it: numbers by value, else by name."""
    by_number = numbers(folders)
    return sorted(folders, key=lambda name: (by_number[name] if by_number else 0, name))


def _known(dataset: str) -> dict[str, int]:
    """Every spelling of the classes of a published data set, without capitals and signs -> its label."""
    spellings = [(letters(name), label) for label, name in enumerate(NAMES[dataset])]
    spellings += [(f"{label}{name}", label) for name, label in spellings]  # 0_airplane
    spellings += [(letters(name), label) for label, also in ALSO.get(dataset, {}).items() for name in also.split()]
    known = {}
    for ending in ("", "s", "es"):  # a name itself comes before the plural of another
        for name, label in spellings:
            known.setdefault(name + ending, label)
    return known


def published(dataset: str, folders: list[str]) -> dict[str, int]:
    """The published label of each folder; folders go all by names (or WordNet IDs), or else all by numbers.

    Raises UserError with both lists where a folder cannot be matched, or two are the same class.
    """
    known, by_number, count = _known(dataset), numbers(folders), len(NAMES[dataset])
    labels = {name: known.get(letters(name)) for name in folders}
    if by_number and None in labels.values():
        labels = by_number
    unknown = [name for name, label in labels.items() if label is None or label >= count]
    often = Counter(labels.values())
    twice = [name for name, label in labels.items() if often[label] > 1]
    if unknown or twice:
        what = "are the same class" if twice and not unknown else f"cannot be matched to the classes of {dataset}"
        raise UserError(f"the folders {listed(unknown or twice)} {what}; there are folders {listed(own(folders))}, and "
                        f"the classes are {listed(NAMES[dataset])}; name the folders after these, or 0 to {count - 1}")
    return labels


def listed(names: list[str], most: int = 12) -> str:
    """Names in a line, the first ones where they are many."""
    return ", ".join(map(str, names[:most])) + (f", ... ({len(names)})" if len(names) > most else "")
