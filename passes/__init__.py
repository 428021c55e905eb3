"""The passes of mbqc, one file or folder each. A pass imports neither another pass nor a backend."""

PASSES = {
    "normalize": "mbqc.passes.normalize:Normalize",
    "quant": "mbqc.passes.quant:Quant",
    "bncorrect": "mbqc.passes.bncorrect:BnCorrect",
    "hasb": "mbqc.passes.hasb:Hasb",
    "train": "mbqc.passes.train:Train",
    "lower": "mbqc.passes.lower:Lower",
}
"""Where each pass stands, by the name written in a pipeline; imported when it is used."""
