"""`peas fit --help`, and that of validate, test and predict: the options most runs need.

A static page, so that it is there at once: the parser that knows every option imports torch and
each class that can be chosen. `--help all` asks it. A test holds the page against it.
"""

from collections.abc import Sequence

ABOUT = {
    "fit": "Train a model from a config.",
    "validate": "Score a checkpoint on the validation split.",
    "test": "Score a checkpoint on the test split.",
    "predict": "Write the scores of every clip of a data set to predictions.csv.",
}
FIT_ONLY = ("--new", "--checkpoints.every_n_train_steps")
OPTIONS: dict[str, dict[str, str]] = {
    "Config": {
        "--config": "a YAML file, or a name of `peas configs ls`; may be repeated",
        "--print_config": "print the complete configuration and exit",
        "--seed_everything": "seed of weights, order, masks and augmentation (default 0)",
    },
    "Model, data, masking": {
        "--model": "peas.tasks.Classification or Pretraining",
        "--model.init_args.encoder": "such as peas.models.SSAST or AudioMAE",
        "--model.init_args.objectives": "what pretraining learns, by a name of your own",
        "--model.init_args.recipe": "optimiser and schedule",
        "--model.init_args.pretrained": "weights of a new run: an official file or a checkpoint",
        "--data": "peas.data.AudioFolder, ESC50, SpeechCommands, AudioSet, …",
        "--data.init_args.root": "folder of the data set",
        "--data.init_args.batch_size": "clips in a batch of one process",
        "--masking": "peas.callbacks.PEAS, SpecAugment, RandomMasking",
    },
    "Run": {
        "--trainer.default_root_dir": "folder of the run (default runs/<config>/<time>)",
        "--ckpt_path": "last resumes the run; best or a file is scored",
        "--new": "start anew; the files of a run in the folder move to earlier/",
        "--checkpoints.every_n_train_steps": "also save inside an epoch",
        "--defaults": "what every run does; --defaults.NAME false switches it off",
    },
    "Trainer": {
        "--trainer.max_epochs": "epochs of the run",
        "--trainer.devices": "number of GPUs, or of processes on a CPU",
        "--trainer.num_nodes": "hosts of a cluster",
        "--trainer.strategy": "ddp for several devices",
        "--trainer.precision": "such as 32-true or bf16-mixed",
        "--trainer.accumulate_grad_batches": "batches of one optimiser step",
        "--trainer.logger": "such as lightning.pytorch.loggers.WandbLogger",
    },
}
"""Options by group. Every other verb has those that are not `FIT_ONLY`."""
MORE = """\
Any key of a config is an option: --data.init_args.fold 3.
More:
  peas {verb} --help all
      every option
  peas {verb} --model.help CLASS
      settings of a class; also --data.help, --masking.help
  peas configs ls
      the configs that come with peas"""


def asks(argv: Sequence[str]) -> bool:
    """Whether a command line asks for this page."""
    return len(argv) == 2 and argv[1] in ("-h", "--help")


def page(verb: str) -> str:
    """The page of one of Lightning's verbs."""
    lines = [f"usage: peas {verb} --config FILE [--KEY VALUE ...]", "", ABOUT[verb]]
    for group, options in OPTIONS.items():
        lines += ["", f"{group}:"]
        for option, text in options.items():
            if verb == "fit" or option not in FIT_ONLY:
                lines.append(f"  {option:<36} {text}")
    return "\n".join([*lines, "", MORE.format(verb=verb)])
