"""The colours of every picture: Okabe and Ito's, told apart with every common colour blindness."""

VERMILION, BLUE, SKY, GREEN, ORANGE, PURPLE, GREY = (
    "#D55E00",
    "#0072B2",
    "#56B4E9",
    "#009E73",
    "#E69F00",
    "#CC79A7",
    "#8A8F98",
)
PALETTE = (VERMILION, BLUE, GREEN, ORANGE, SKY, PURPLE, GREY)
# Further ones, for what needs colours of its own beside these; told apart with symbols as well.
INDIGO, OLIVE, BROWN = "#6A5ACD", "#8F8F28", "#A0662D"
# The colour of the text: a page on dark paper draws it light.
INK = "#1b1f24"
