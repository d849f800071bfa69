"""Copy the 96 demo pictures that people recognise out of the Fluent emoji, with their names."""

import argparse
import json
import shutil
from pathlib import Path

CHOSEN = """
red apple|green apple|banana|lemon|strawberry|watermelon|pineapple|grapes|avocado|carrot|hot pepper|mushroom
croissant|cheese wedge|hamburger|pizza|french fries|sushi|doughnut|birthday cake|ice cream|hot beverage|teapot
cat face|dog face|panda|fox|lion|tiger face|rabbit face|frog|pig face|koala|elephant|giraffe|zebra|horse|penguin|owl
rooster|flamingo|parrot|turtle|whale|dolphin|tropical fish|octopus|crab|butterfly|honeybee|lady beetle|snail|T-Rex
unicorn|monkey face
tulip|rose|sunflower|cactus|palm tree|evergreen tree|four leaf clover|maple leaf
automobile|bus|taxi|fire engine|tractor|bicycle|locomotive|rocket|airplane|helicopter|sailboat
red heart|blue heart|yellow heart|fire|rainbow|snowman|full moon face|sun with face|star
grinning face|smiling face with heart-eyes|ghost|robot|alien
balloon|wrapped gift|guitar|soccer ball|basketball|umbrella|key|house
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True, help="all emoji: a folder with metadata.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="gets the chosen ones and a metadata.jsonl")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    copy_chosen(options.pictures, options.out)


def copy_chosen(pictures: Path, out: Path) -> None:
    """Copy the chosen pictures unchanged; the rows keep the order of the full list."""
    names = set(CHOSEN.strip().replace("\n", "|").split("|"))
    rows = [json.loads(line) for line in (pictures / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    chosen = [row for row in rows if row["text"] in names]
    for row in chosen:
        shutil.copyfile(pictures / row["file_name"], out / row["file_name"])
    lines = [json.dumps(row, ensure_ascii=False) for row in chosen]
    (out / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
