"""The picture that a link to the site shows elsewhere, and the first thing on the home page: `make card`."""
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from PIL import Image  # noqa: E402

IMAGES = Path(__file__).parents[1]/"nbs/images"


def draw():
    "Title, promise, and the two photographs of the first page, 1200 by 630 pixels."
    fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="#10243b")
    fig.text(.05, .8, "hfflow", fontsize=46, weight="bold", color="white")
    fig.text(.05, .70, "Learn fine-tuning in the Hugging Face ecosystem, then do it.", fontsize=20, color="#f0b35c")
    fig.text(.05, .635, "Every line runs: no account, no network, no GPU.", fontsize=16, color="#c9d6e4")
    for name, box in (("start-model", (.05, -.12, .43, .72)), ("start-space", (.52, -.12, .43, .72))):
        picture = Image.open(IMAGES/f"{name}-light.png").convert("RGB")
        ax = fig.add_axes(box, anchor="N")
        ax.imshow(picture.crop((0, 0, picture.width, min(picture.height, int(picture.width * .72)))), interpolation="lanczos")
        ax.axis("off")
    fig.savefig(IMAGES/"card.png", facecolor=fig.get_facecolor())


if __name__ == "__main__": draw()
