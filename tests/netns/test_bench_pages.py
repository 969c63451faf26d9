"""The report of `fastpump bench`, as a browser shows it."""

import random

from matplotlib import image

from fastpump.bench import figures, page
from fastpump.bench.results import Column, Results, this_machine
from fastpump.lab.networks import need

NAMES = "bare", "fastpump, 1 queue", "fastpump, 4 queues", "wireguard-go", "nebula"
WIDTH = 1100


def results():
    rng = random.Random(3)
    columns = {name: Column("IP", "", "--queues 1", [
        {figures.throughput(load): rng.uniform(3, 4) * (1 + place % 3)
         for load in ("TCP, 1 stream", "TCP, 4 streams", "TCP, reverse")}
        | {figures.cpu_per_gb("TCP, 1 stream"): rng.uniform(1, 2)} for _ in range(6)])
        for place, name in enumerate(NAMES)}
    return Results(this_machine(), {"rounds": "6"}, {"hosts": columns, "gateways": columns})


def test_a_browser_shows_it_whole(lab, tmp_path):
    """Nothing runs over the edge, and the plots have their colours."""
    need("chromium")
    path, picture = tmp_path / "report.html", tmp_path / "report.png"
    text = page.render(results(), "wireguard-go")
    # What the page itself measures: its width, and whether each plot has an area.
    path.write_text(text.replace("</body>", """<script>
const root = document.documentElement;
document.title = JSON.stringify({fits: root.scrollWidth <= root.clientWidth,
    plots: [...document.querySelectorAll("svg")].map(e => e.getBoundingClientRect()).filter(
        e => e.width > 400 && e.height > 100).length,
    rows: document.querySelectorAll(".verdicts tbody tr").length})
</script></body>"""), encoding="utf-8")
    words = ("env", f"HOME={tmp_path}", "chromium", "--headless", "--no-sandbox", "--disable-gpu",
             "--disable-dev-shm-usage", f"--user-data-dir={tmp_path}/profile",
             f"--window-size={WIDTH},4000")
    found = lab.run("a", *words, "--dump-dom", f"file://{path}", timeout=120).stdout
    assert '<title>{"fits":true,"plots":8,"rows":8}</title>' in found
    lab.run("a", *words, f"--screenshot={picture}", f"file://{path}", timeout=120)
    pixels = image.imread(picture)[:, :, :3]
    assert pixels.shape[1] == WIDTH
    for color in (0x0B, 0x6E, 0x4F), (0xC7, 0x7D, 0x0A):      # of fastpump and of rivals, faded
        faded = [0.85 * each / 255 + 0.15 for each in color]
        assert (abs(pixels - faded) < 0.02).all(axis=2).sum() > 1000
