"""`kcache train`: the group of the two trainers, prior and decoder."""

from kcache.cli.shell import LazyGroup

COMMANDS = {
    "prior": ("kcache.cli.train_prior:prior", "Train the prior: caption -> CLIP image embedding."),
    "decoder": ("kcache.cli.train_decoder:decoder", "Train the decoder: CLIP image embedding -> picture."),
}

train = LazyGroup(
    "train",
    COMMANDS,
    help="""Train from a cache; the frozen encoders are not loaded.

    \b
    kcache train prior CACHE --output-dir my-prior
    kcache train decoder CACHE --output-dir my-decoder
    """,
)
