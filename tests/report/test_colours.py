"""What models are drawn in: told apart where they share a chart, a repeat by the dash alone."""

from itertools import combinations

from support.synthetic_study import write_study

from safety_subspaces.artefacts.study import read_study
from safety_subspaces.findings.models import together
from safety_subspaces.report.parts.colours import MODELS, Colours, colours_of, ranked

FREE = ("base", "aligned", "useful", "harmful", "contaminated", "contaminated_lora")
AGAIN = {"useful_again": "useful", "harmful_again": "harmful"}
HELD = tuple(f"contaminated_{how}" for how in ("away", "onto", "away_random", "away_random_energy"))
# In the order in which a demo's analyses name them: a run that was held stands before some that were not.
DEMO = ("base", "aligned", *HELD[:2], "useful", "useful_again", *FREE[3:], "harmful_again", *HELD[2:])


def demo_colours():
    roles = {label: label if label in ("base", "aligned") else "tuned" for label in DEMO}
    return ranked(roles, HELD, AGAIN)


def looks(colours, labels):
    styles = [colours.style(label) for label in labels]
    return [(style["line"]["color"], style["line"]["dash"]) for style in styles]


def test_the_models_that_most_charts_show_have_colours_of_their_own():
    colours = demo_colours()
    assert len({colours.of(label) for label in FREE[:5]}) == 5
    assert (colours.of("aligned"), colours.of("base")) == MODELS[:2]
    assert len({colours.of(label) for label in HELD}) == 4


def test_no_two_of_the_twelve_models_of_a_demo_are_drawn_alike():
    colours = demo_colours()
    for one, other in combinations(looks(colours, DEMO), 2):
        assert one != other


def test_a_repeat_has_the_colour_of_the_first_and_another_dash_and_symbol():
    colours = demo_colours()
    for again, first in AGAIN.items():
        one, other = colours.style(again), colours.style(first)
        assert one["line"]["color"] == other["line"]["color"]
        assert one["line"]["dash"] != other["line"]["dash"]
        assert one["marker"]["symbol"] != other["marker"]["symbol"]


def test_two_that_repeat_each_other_and_models_that_are_asked_for_later_have_a_place():
    colours = Colours(("a", "b"), {"a": "b", "b": "a"})
    assert colours.of("a") == colours.of("b")
    assert len(set(looks(colours, ("a", "b", "c", "d")))) == 4


def test_the_colours_of_a_study_follow_its_manifests(tmp_path):
    study = read_study(write_study(tmp_path / "s", analyses=("evaluate", "overlap")))
    colours = colours_of(together([study]))
    assert colours.of("aligned") == MODELS[0]
    assert colours.of("base") == MODELS[1]
    assert colours.of("useful_again") == colours.of("useful")
    assert len(set(looks(colours, study.models["model"]))) == len(study.models)
