"""How often does a line's part-of-speech template occur in another sonnet, as the tags are made coarser?

    python -m benchmarks.template_match

Each sonnet in turn is left out; reported is the share of its lines whose template some other sonnet has, for Penn tags,
the universal tag set, content words against function words, and words alone; each with the marks and without them, and
for the first half of a line as well.
"""

import argparse
from pathlib import Path

from cli.script import run_script
from datasets import load_sonnets
from decoding.template import TAG_SETS, coarser, load_tagger, tag_line

NAMES = {"penn": "Penn Treebank", "universal": "universal", "content": "content or function", "word": "words only"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder with sonnets.txt (default: data)")
    sonnets = load_sonnets(Path(parser.parse_args().data, "sonnets.txt"))
    tag_words, _ = load_tagger()
    tagged = [[tag_line(line.strip(), tag_words) for line in text.splitlines() if line.strip()] for text in sonnets]
    lines = sum(map(len, tagged))
    print(f"{len(sonnets)} sonnets, {lines} lines: share of lines whose template another sonnet has\n")
    print("| tags | whole line | without marks | first half, without marks |\n|---|---:|---:|---:|")
    for tag_set in TAG_SETS:
        cells = []
        for marks, half in ((True, False), (False, False), (False, True)):
            templates = [[template(line, tag_set, marks, half) for line in sonnet] for sonnet in tagged]
            cells.append(f"{100 * share_found_elsewhere(templates):.1f} %")
        print(f"| {NAMES[tag_set]} | " + " | ".join(cells) + " |")


def template(line, tag_set, marks, half):
    tags = [coarser(tag, tag_set) for _, _, tag in line if marks or tag[0].isalpha()]
    return tuple(tags[: (len(tags) + 1) // 2] if half else tags)


def share_found_elsewhere(templates):
    """templates: for every sonnet the templates of its lines."""
    owners = {}
    for number, sonnet in enumerate(templates):
        for line in sonnet:
            owners.setdefault(line, set()).add(number)
    found = [bool(owners[line] - {number}) for number, sonnet in enumerate(templates) for line in sonnet]
    return sum(found) / len(found)


if __name__ == "__main__":
    run_script(main)
