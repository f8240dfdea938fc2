"""Two pages in two languages: what of them must be the same, and in which section and line it is not."""

import re
from collections import Counter
from dataclasses import dataclass, field

NUMBER = r"\d+(?:[,.]\d+)*(?:e-?\d+)?"
# What the English spells another language may write in digits
WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
SPELT = {word: str(number) for number, word in enumerate(WORDS.split())}
SPELT |= {"a quarter of a minute": "15", "a minute": "1", "a third": "3", "half a million": "500000"}
NAMES = re.compile(r"(?:\s*(?:[\w./-]+\.(?:py|html|ipynb)|[\w./]+/)(?=\s|$))+")  # where a line of a tree begins


@dataclass
class Section:
    """level: of its heading, 1 for #. code: [(line in the file, the block's lines)]. prose: [(line, text)]."""

    title: str
    level: int
    line: int
    code: list = field(default_factory=list)
    prose: list = field(default_factory=list)


def sections_of(text):
    """The Sections of a page in Markdown, in order; it begins with a heading."""
    sections, fenced, blank, indented = [], False, True, False
    for number, line in enumerate(text.splitlines(), start=1):
        fence = line.startswith("```")
        heading = not fenced and re.match(r"(#+) (.*)", line)
        if heading:
            sections.append(Section(heading[2], len(heading[1]), number, prose=[(number, heading[2])]))
        elif fenced or fence:
            if fence and not fenced:
                sections[-1].code.append((number, []))
            sections[-1].code[-1][1].append(line)
            fenced = fenced != fence
        elif line.startswith("    ") and (blank or indented):
            if not indented:
                sections[-1].code.append((number, []))
            sections[-1].code[-1][1].append(line)
            indented = True
        elif line.strip():
            sections[-1].prose.append((number, line))
            indented = False
        elif indented:
            sections[-1].code[-1][1].append(line)  # perhaps the block goes on after it
        blank = not line.strip()
    for section in sections:
        section.code = [(number, "\n".join(lines).rstrip().split("\n")) for number, lines in section.code]
    return sections


def differences(page, english, other_page, other, tree=None, first=False):
    """Lines that say where `other` (the text of other_page) has drifted from english (the text of page).

    tree: the English title of the section whose block is a tree of files: there what stands after the names is words.
    first: the other page is the first sections of the English one alone.
    """
    ours, theirs = sections_of(english), sections_of(other)
    pairs = list(zip(ours, theirs, strict=False))
    anchors = {f"#{slug(a.title)}": f"#{slug(b.title)}" for a, b in pairs}
    found = []
    for a, b in pairs:
        where = f"{other_page}, {b.title!r} (line {b.line}; {page}, {a.title!r}, line {a.line}): "
        found += [where + what for what in _of_section(a, b, anchors, tree == a.title)]
    if len(theirs) > len(ours) or (len(theirs) < len(ours) and not first):  # below the first one all are shifted
        found[1:] = [f"{page} has {len(ours)} headings, {other_page} {len(theirs)}: it begins there, or at the end"]
    return found


def slug(title):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _of_section(a, b, anchors, tree):
    if a.level != b.level:
        yield f"a heading of level {b.level}, not {a.level}"
    if len(a.code) != len(b.code):
        yield f"{len(b.code)} blocks of code, not {len(a.code)}"
    for (start, mine), (their_start, theirs) in zip(a.code, b.code, strict=False):
        if tree:
            mine, theirs = map(_names, mine), map(_names, theirs)
        yield from _of_code(list(mine), list(theirs), start, their_start)
    prose, other = ["\n".join(line for _, line in section.prose) for section in (a, b)]
    kinds = {
        "code in the text": (_code(prose), _code(other)),
        "links": (Counter(anchors.get(link, link) for link in _links(prose)), _links(other)),
        "rows of tables": (_rows(prose), _rows(other)),
    }
    for kind, (wanted, there) in kinds.items():
        if lacking := wanted - there:
            yield f"{kind}: {_shown(lacking)} missing{_at(a, lacking, 'English ')}"
        if more := there - wanted:
            yield f"{kind}: {_shown(more)} not in the English{_at(b, more)}"
    wanted, there = _figures(prose), _figures(other)
    if lacking := wanted - there:
        yield f"figures: {_shown(lacking)} missing{_at(a, lacking, 'English ')}"
    if more := there - wanted - _spelt(prose):
        yield f"figures: {_shown(more)} not in the English{_at(b, more)}"


def _of_code(mine, theirs, start, their_start):
    for place, (line, other) in enumerate(zip(mine, theirs, strict=False)):
        if line != other:
            yield f"code, line {their_start + place}: {other.strip()!r}; English line {start + place}: {line.strip()!r}"
            return
    if len(mine) != len(theirs):
        place, longer = min(len(mine), len(theirs)), max(mine, theirs, key=len)
        which = "not in the English" if len(theirs) > len(mine) else "missing"
        yield f"the code that begins in line {their_start}: {longer[place].strip()!r} is {which}"


def _names(line):
    found = NAMES.match(line)
    return " ".join(found[0].split()) if found else line.strip()


def _code(text):
    return Counter(" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text))


def _links(text):
    """The targets; a page's Korean form counts as the page."""
    return Counter(re.sub(r"\.ko\.md\b", ".md", target) for target in re.findall(r"\]\(([^)]+)\)", text))


def _rows(text):
    """How many cells each row of a table has."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return Counter(f"row {n} with {row.count('|') - 1} cells" for n, row in enumerate(rows, start=1))


def _figures(text):
    """The numbers of a text, but for those in code, targets of links and names such as GPT-2."""
    text = re.sub(r"`[^`]+`|\]\([^)]+\)", " ", text)
    text = re.sub(rf"({NUMBER})[- ]million", lambda found: _times(found[1], 10**6), text)
    text = re.sub(rf"({NUMBER})만", lambda found: _times(found[1], 10**4), text)
    return Counter(found.replace(",", "") for found in re.findall(rf"(?<![\w.,])(?<![A-Za-z]-){NUMBER}", text))


def _times(number, factor):
    return f"{round(float(number.replace(',', '')) * factor)}"


def _spelt(text):
    """The numbers that the English spells, as often as one likes."""
    text = " ".join(text.lower().split())
    return Counter(dict.fromkeys((number for words, number in SPELT.items() if re.search(rf"\b{words}\b", text)), 99))


def _shown(counter):
    return ", ".join(repr(key) for key in list(counter)[:5]) + (", ..." if len(counter) > 5 else "")


def _at(section, counter, page=""):
    """Where in a section the first of these stands."""
    key = next(iter(counter))
    return next((f" ({page}line {number}: {line.strip()[:60]!r})" for number, line in section.prose if key in line), "")
