"""A small residual network with synchronized batch normalization on the digits.

    python -m tfscale.fit --config=experiments/digits_resnet.py
    python -m tfscale.fit --config=experiments/digits_resnet.py --strategy=multiworker --workers=2

Mean and variance are those of the global batch on every replica, so two workers take the steps
that one device takes. At this learning rate differences in rounding grow: the first epoch agrees
in every digit that is shown, the last ones follow slightly different curves.

Data: 1,437 images of 8x8 pixels to train on, 360 to test. Model: 19,994 parameters.
Cost: 450 steps. 4 s on one device, 25 s with two local workers: each normalization is one more
exchange between them in every step.
Result: test accuracy 0.9917, test loss 0.0756 on one device; 0.9917 and 0.0669 with two workers.
Measured with each command on two CPU cores; seconds
are those the run reports, from the first step to the test.
"""

from tfscale.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)


def get_config():
    """Return the run: two stages of one residual block, SGD with momentum, a warmup."""
    return RunConfig(
        data=DataConfig(name="digits", global_batch_size=32),
        model=ModelConfig(
            name="resnet", arguments={"blocks": (1, 1), "filters": (16, 32), "l2": 1e-4}
        ),
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, arguments={"momentum": 0.9}),
        schedule=ScheduleConfig(name="cosine", warmup_steps=45),
        train=TrainConfig(epochs=10),
    )
