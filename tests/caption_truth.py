"""Reads captions and proves them from labels alone. Shares no code with what writes them, and nothing of geomim.

Words of classes are given by hand. An object is a dict of `what` (a key of the words), `polygon` (corners in pixels of
the tile) and, where the labels say so themselves, `cut`.
"""

import re

VAGUE = ("many", "a lot of", "lots of", "a large number of")
SPELLED = {word: n for n, word in enumerate("two three four five six seven eight nine ten".split(), 2)}
FRACTIONS = {
    "a tenth": 1 / 10, "a fifth": 1 / 5, "a quarter": 1 / 4, "three tenths": 3 / 10, "a third": 1 / 3,
    "two fifths": 2 / 5, "half": 1 / 2, "three fifths": 3 / 5, "two thirds": 2 / 3, "seven tenths": 7 / 10,
    "three quarters": 3 / 4, "four fifths": 4 / 5, "nine tenths": 9 / 10,
}  # fmt: skip
NUMBER = "(?:" + "|".join([*map(re.escape, VAGUE), *SPELLED, *map(str, range(10, 1, -1))]) + ")"
MEASURE = r"about ([\d,.]+) (m|km)"


class Untrue(AssertionError):
    """A sentence that cannot be read, or that the labels do not bear out."""


def need(truth, sentence, why):
    if not truth:
        raise Untrue(f"{sentence!r}: {why}")


def uncapital(text):
    return text[:1].lower() + text[1:]


def overlap(polygon, low, high):
    """Whether a convex polygon, a list of corners, and the square from `low` to `high` have ground in common."""
    square = [low, (high[0], low[1]), high, (low[0], high[1])]
    sides = zip(polygon, [*polygon[1:], polygon[0]], strict=True)
    for x, y in [(1, 0), (0, 1), *((b - d, c - a) for (a, b), (c, d) in sides)]:  # apart along some axis, or nowhere
        one, two = ([x * col + y * row for col, row in shape] for shape in (polygon, square))
        if max(one) <= min(two) or max(two) <= min(one):
            return False
    return True


def pixels_near(polygon):
    xs, ys = zip(*polygon, strict=True)
    return [(row, col) for row in range(int(min(ys)) - 2, int(max(ys)) + 3)
            for col in range(int(min(xs)) - 2, int(max(xs)) + 3)]  # fmt: skip


def is_valid(valid, row, col):
    return 0 <= row < len(valid) and 0 <= col < len(valid) and bool(valid[row][col])


class Objects:
    """Proves sentences about objects.

    `words` maps a class to `(with article, plural)`, or to `(with article, plural, "mass")` for what has no wholeness;
    `valid` says which pixels of the tile are measurements, all if not given.
    """

    def __init__(self, words, size, middle=0.5, gsd=None, valid=None):
        self.words, self.size, self.middle, self.gsd, self.valid = words, size, middle, gsd, valid
        one = {entry[0]: what for what, entry in words.items()}
        many = {entry[1]: what for what, entry in words.items()}
        self.names = {**one, **many}
        ones, manys = ("|".join(sorted(map(re.escape, names), key=len, reverse=True)) for names in (one, many))
        self.item = re.compile(
            rf"(?:(?P<part>parts?) of )?(?:(?P<one>{ones}|another)|(?P<number>{NUMBER}) (?P<many>{manys}|others))"
            r"(?=$|, | and )"
        )
        self.many = manys

    def prepare(self, objects):
        found = []
        for one in objects:
            xs, ys = one["polygon"][::2], one["polygon"][1::2]
            box = min(xs), min(ys), max(xs), max(ys)
            # less than a pixel from the border, or beyond it: labels do not tell whether it goes on
            edge = box[0] < 1 or box[1] < 1 or box[2] > self.size - 1 or box[3] > self.size - 1
            cut = edge or one.get("cut", False)
            x, y = sum(xs) / len(xs), sum(ys) / len(ys)
            corners = list(zip(xs, ys, strict=True))
            if self.valid is not None:
                if not is_valid(self.valid, int(y), int(x)):
                    continue  # its middle is not seen, as that of one beyond the border
                near = [(r, c, is_valid(self.valid, r, c)) for r, c in pixels_near(corners)]
                cut |= any(overlap(corners, (c - 1, r - 1), (c + 2, r + 2)) for r, c, good in near if not good)
            sides = [
                ((a - c) ** 2 + (b - d) ** 2) ** 0.5
                for (a, b), (c, d) in zip(corners, [*corners[1:], corners[0]], strict=True)
            ]
            found.append({"what": one["what"], "x": x, "y": y, "cut": cut, "length": max(sides)})
        return found

    def where(self, objects, place, sentence):
        low, high = (0.5 - self.middle / 2) * self.size, (0.5 + self.middle / 2) * self.size
        inside = [one for one in objects if low <= one["x"] <= high and low <= one["y"] <= high]
        if quarter := re.search(r"(upper|lower) (left|right) quarter", place):
            return [one for one in objects if self.quarter(one) == quarter.groups()]
        if re.match(r"(outside|away from) ", place):
            return [one for one in objects if one not in inside]
        if "middle" in place or "centre" in place:
            return inside
        need(re.fullmatch(r"in (this|the) (remote sensing )?(picture|image)", place), sentence, "no such place")
        return objects

    def quarter(self, one):
        half = self.size / 2
        return "upper" if one["y"] < half else "lower", "left" if one["x"] < half else "right"

    def prove(self, sentence, objects):
        """Raise `Untrue` where the sentence is not true of the objects."""
        need(sentence.endswith(".") and sentence[0] == sentence[0].upper(), sentence, "no sentence")
        text, objects = uncapital(sentence[:-1]), self.prepare(objects)
        place = r"(?P<place>(?:in|outside|away from) (?:this|the) .*?)"
        forms = (
            rf"there (?P<be>is|are) (?P<list>.*) {place}",
            rf"{place} there (?P<be>is|are) (?P<list>.*)",
            rf"(?P<list>.*) (?P<all>is|are) located {place}",
            rf"(?P<list>.*) can be seen {place}",
        )
        if match := re.fullmatch(
            rf"(.*?)(?: that spans {MEASURE})? lies in the (\w+) (\w+) quarter of the picture", text
        ):
            return self.prove_one(match, sentence, objects)
        if match := re.fullmatch(
            rf"the (larger|largest) of (many|the \w+) (whole )?({self.many}) spans {MEASURE}"
            rf"(?:, the (smaller|smallest) {MEASURE})?",
            text,
        ):
            return self.prove_largest(match, sentence, objects)
        for form in forms:
            if match := re.fullmatch(form, text):
                groups = match.groupdict()
                there = self.where(objects, groups["place"], sentence)
                return self.prove_list(groups["list"], groups.get("be"), groups.get("all"), sentence, there)
        raise Untrue(f"{sentence!r} is of no known form")

    def prove_list(self, text, be, all_be, sentence, objects):
        both = text.startswith("both ")
        rest, items = text.removeprefix("both "), []
        while rest:
            match = self.item.match(rest)
            need(match, sentence, f"{rest!r} names nothing")
            items.append(match.groupdict())
            rest = rest[match.end() :]
            rest = rest.removeprefix(", ") if rest.startswith(", ") else rest.removeprefix(" and ")
        need(not both or len(items) == 2, sentence, "both of other than two")
        single = not both and (items[0]["one"] is not None and items[0]["part"] != "parts")
        need(be is None or be == ("is" if single else "are"), sentence, "is or are")
        need(all_be is None or all_be == ("is" if single and len(items) == 1 else "are"), sentence, "is or are")
        for item in items:
            name = item["one"] or item["many"]
            what = (
                self.names[items[0]["one"] or items[0]["many"]] if name in ("another", "others") else self.names[name]
            )
            mass = len(self.words[what]) > 2
            own = [one for one in objects if one["what"] == what]
            cut = [one for one in own if one["cut"]]
            count = len(cut) if item["part"] else len(own) if mass else len(own) - len(cut)
            need(not (mass and item["part"]), sentence, "a part of what has no whole")
            self.prove_number(item, count, sentence)

    def prove_number(self, item, count, sentence):
        if item["one"]:
            need(count == 1, sentence, f"there are {count}")
        elif item["number"] in VAGUE:
            need(count > 10, sentence, f"there are {count}, which is not vague")
        else:
            stated = SPELLED.get(item["number"]) or int(item["number"])
            need(stated == count and count <= 10, sentence, f"there are {count}")

    def prove_one(self, match, sentence, objects):
        name, number, unit, *quarter = match.groups()
        there = [one for one in objects if one["what"] == self.names[name] and self.quarter(one) == tuple(quarter)]
        whole = [one for one in there if not one["cut"]]
        need(whole, sentence, "there is no whole one")
        if number:
            need(any(self.near(one, number, unit) for one in whole), sentence, "none is so large")

    def prove_largest(self, match, sentence, objects):
        large, number, whole, many, high, high_unit, _, low, low_unit = match.groups()
        own = [one for one in objects if one["what"] == self.names[many]]
        lengths = sorted((one["length"], n) for n, one in enumerate(own) if not one["cut"])
        count = len(lengths)
        stated = count > 10 if number == "many" else SPELLED.get(number.removeprefix("the ")) == count
        need(stated, sentence, f"there are {count}")
        need((large == "larger") == (count == 2), sentence, "of two or more")
        need(bool(whole) == (count < len(own)), sentence, "whole or not")
        need(self.near(own[lengths[-1][1]], high, high_unit), sentence, "the largest is not so large")
        need(not low or self.near(own[lengths[0][1]], low, low_unit), sentence, "the smallest is not so small")

    def near(self, one, number, unit):
        return near(float(number.replace(",", "")) * (1000 if unit == "km" else 1), one["length"] * self.gsd)


def near(stated, true):
    return abs(stated - true) <= 0.051 * true


def prove_cover(sentence, shares):
    """Raise `Untrue` where a sentence on shares of the ground is not true; `shares` are those of the valid pixels."""
    text, names = uncapital(sentence[:-1]), "|".join(sorted(map(re.escape, shares), key=len, reverse=True))
    fraction = "|".join(FRACTIONS)
    item = rf"({fraction}) by ({names})"

    def about(words, name):
        need(abs(FRACTIONS[words] - shares[name]) <= 0.0501, sentence, f"{name} is {shares[name]:.3f}")

    if match := re.fullmatch(
        rf"(?:almost all of the picture is covered by ({names})|the picture shows almost nothing but ({names}))", text
    ):
        need(shares[match[1] or match[2]] >= 0.95, sentence, "it is not")
    elif match := re.fullmatch(
        rf"about ({fraction}) of the picture is covered by ({names}), the rest by ({names})", text
    ):
        about(match[1], match[2])
        about_rest = 1 - shares[match[2]] - shares[match[3]]
        need(match[2] != match[3] and about_rest <= 0.005 + 1e-9, sentence, f"{about_rest:.3f} is something else")
    elif match := re.fullmatch(
        rf"about ({fraction}) of the picture is covered by ({names})((?:(?:, | and )(?:{item}))*)", text
    ):
        about(match[1], match[2])
        for words, name in re.findall(item, match[3]):
            about(words, name)
    elif match := re.fullmatch(rf"(?:the picture shows )?mostly ({names}) (?:with|and) some ({names})", text):
        need(shares[match[1]] > 0.5 and 0.05 <= shares[match[2]] < 0.5, sentence, "it is not")
    elif match := re.fullmatch(rf"({names}) covers? about ({fraction}) of the picture", text):
        about(match[2], match[1])
    else:
        raise Untrue(f"{sentence!r} is of no known form")


def prove_ground(sentence, words, seen, measure):
    """Raise `Untrue` where a sentence on what a map shows of a tile is not true.

    `words` as for `Objects`; `seen` has a dict a geometry: `what`, `cut`, `kind` ("point", "line" or "area"), and
    `crosses`, the classes that it crosses. `measure` maps a class to its square metres, or the metres of its lines.
    """
    text, objects = uncapital(sentence[:-1]), Objects(words, 1)
    stuff = {entry[-1] if len(entry) == 4 else entry[1]: what for what, entry in words.items()}
    ones = {entry[0]: what for what, entry in words.items()}

    def number(text):
        return float(text.replace(",", ""))

    if match := re.fullmatch(r"(.*) covers? about ([\d,.]+) (square metres|hectares?)", text):
        name, stated, unit = match.groups()
        part = name.startswith("part of ")
        name = name.removeprefix("part of ")
        what = ones.get(name) or stuff[name]
        own = [one for one in seen if one["what"] == what]
        need(own and all(one["kind"] == "area" for one in own), sentence, "no such area")
        if name in ones and len(words[what]) < 4:
            need(len(own) == 1 and own[0]["cut"] == part, sentence, "not one, or not whole")
        need(near(number(stated) * (1e4 if "hect" in unit else 1), measure[what]), sentence, f"{measure[what]:.1f}")
    elif match := re.fullmatch(rf"{MEASURE} of (.*) can be seen in (this|the) (remote sensing )?\w+", text):
        what = {entry[0].split(" ", 1)[1]: what for what, entry in words.items()}[match[3]]
        need(
            near(number(match[1]) * (1000 if match[2] == "km" else 1), measure[what]), sentence, f"{measure[what]:.1f}"
        )
    elif " crosses " in text:
        for part in re.split(r" and (?=an? [\w ]* crosses )", text):
            line, over = part.split(" crosses ")
            over = ones.get(over) or stuff[over]
            need(any(over in one["crosses"] for one in seen if one["what"] == ones[line]), sentence, "it does not")
    else:
        things = [one for one in seen if one["kind"] != "line"]
        for form in (r"there (?P<be>is|are) (?P<list>.*) in t.*", r"in t.* there (?P<be>is|are) (?P<list>.*)",
                     r"(?P<list>.*) (?P<all>is|are) located in t.*", r"(?P<list>.*) can be seen in t.*"):  # fmt: skip
            if match := re.fullmatch(form, text):
                groups = match.groupdict()
                return objects.prove_list(groups["list"], groups.get("be"), groups.get("all"), sentence, things)
        raise Untrue(f"{sentence!r} is of no known form")
