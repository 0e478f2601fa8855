"""The format of Stanford Alpaca, which MetaMath and the paper (arXiv 2505.14185, appendix) train with."""

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{prompt}\n\n### Response: "
)
