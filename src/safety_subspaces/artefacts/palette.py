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
