"""Train a classifier and watch its last layers: `python train.py [group=choice] [key=value] ...`."""

from nc_callbacks.experiments.train import main

if __name__ == "__main__":
    main()
